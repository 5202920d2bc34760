"""What pruning costs on the pretrained decoder, beside the paper: writes docs/evidence.md.

    python tools/scene_vlm/assemble.py FOLDER
    python tools/scene_vlm/evidence.py FOLDER --output out/evidence

Hours on a laptop. Answers are kept in OUTPUT, so the same command goes on where it was stopped.
The test split is for the final figures: try things out with --split development.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kept_rows import measure

from feather_edge.evaluate.comparison import Comparison
from feather_edge.evaluate.evaluation import evaluate
from feather_edge.evaluate.report import COLUMNS, table_rows
from feather_edge.evaluate.tasks import load_task
from feather_edge.export.pipeline import export
from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from feather_edge.evaluate.summary import Evaluation
    from feather_edge.evaluate.tasks import Task

_COMMANDS = """```bash
python tools/scene_vlm/assemble.py FOLDER
python tools/scene_vlm/evidence.py FOLDER --output out/evidence
```
"""
_BASELINES = ("uniform", "random")
_ATTENTION = ("feather", "fastv", "fastv-full")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One bundle and what is asked of it.

    Attributes:
        title: heading of its table.
        recipe: how the bundle is exported.
        comparison: methods and keep ratios.
        paper: localisation left in the paper's Table 1 or A2, relative to its unpruned model, per
            method and keep ratio.
    """

    title: str
    recipe: ExportRecipe
    comparison: Comparison
    paper: dict[tuple[str, float], float]


def _single(layer: int, paper: dict[tuple[str, float], float]) -> Run:
    # Without a grid, `feather` is the RoPE-free score alone.
    return Run(
        title=f"One stage, before layer {layer}; a quarter of the tokens is kept",
        recipe=ExportRecipe(stages=(layer,), stride=0, opset="23"),
        comparison=Comparison(methods=(*_ATTENTION, *_BASELINES), keep_ratios=(0.25,)),
        paper=paper,
    )


RUNS = {
    "layer-3": _single(
        3,
        {
            ("fastv", 0.25): 5.9 / 53.2,
            ("feather", 0.25): 16.7 / 53.2,
            ("uniform", 0.25): 28.0 / 53.2,
        },
    ),
    "layer-8": _single(
        8,
        {
            ("fastv", 0.25): 23.3 / 53.2,
            ("feather", 0.25): 27.3 / 53.2,
            ("uniform", 0.25): 30.3 / 53.2,
        },
    ),
    "feather": Run(
        title="FEATHER as published: before layers 8 and 16, the union with a grid of stride 3",
        recipe=ExportRecipe(stages=(8, 16), selection="union", opset="23"),
        comparison=Comparison(methods=("feather",), keep_ratios=(0.3, 0.6), budget="own"),
        paper={("feather", 0.3): 39.3 / 53.2, ("feather", 0.6): 49.7 / 53.2},
    ),
    "equal": Run(
        title="Before layers 8 and 16, all at equal cost",
        recipe=ExportRecipe(stages=(8, 16), opset="23"),
        comparison=Comparison(methods=(*_ATTENTION, *_BASELINES), keep_ratios=(0.3, 0.6)),
        paper={},
    ),
    "pyramiddrop": Run(
        title="PyramidDrop: before layers 8, 15 and 22, powers of the ratio",
        recipe=ExportRecipe(
            stages=(8, 15, 22), prune="pyramiddrop", keep_ratio=(0.5, 0.25, 0.125), opset="23"
        ),
        comparison=Comparison(methods=("pyramiddrop", "uniform"), keep_ratios=(0.3, 0.6)),
        paper={("pyramiddrop", 0.3): 28.9 / 53.2, ("pyramiddrop", 0.6): 46.6 / 53.2},
    ),
}


def asked(split: str, limit: int | None) -> Task:
    """Return a task with two questions a scene: for a place, and one other, each kind in turn."""
    task = load_task("scenes", split=split, limit=limit)
    samples = []
    for index, sample in enumerate(task.samples):
        places = [question for question in sample.questions if question.box is not None]
        words = [question for question in sample.questions if question.box is None]
        questions = (*places, words[index % len(words)])
        samples.append(dataclasses.replace(sample, questions=questions))
    return dataclasses.replace(task, digest=f"{task.digest}-two", samples=tuple(samples))


def evaluations(checkpoint: Path, output: Path, task: Task) -> Iterator[tuple[Run, Evaluation]]:
    """Yield the outcome of every run, exporting bundles where they are missing."""
    for name, run in RUNS.items():
        bundle = output / name / "bundle"
        if not bundle.exists():
            bundle.parent.mkdir(parents=True, exist_ok=True)
            export(checkpoint, bundle, run.recipe)
        yield (
            run,
            evaluate(
                bundle, task, run.comparison, output=output / name / "answers", box_format="0-100"
            ),
        )


def table(run: Run, evaluation: Evaluation) -> Iterator[str]:
    """Yield the lines of one run's section."""
    columns = (*COLUMNS, "prefill", "left", "left in the paper")
    yield f"## {run.title}\n"
    yield "| " + " | ".join(columns) + " |"
    yield "| " + " | ".join("---" for _ in columns) + " |"
    full = evaluation.rows[0]
    for row, cells in zip(evaluation.rows, table_rows(evaluation), strict=True):
        left = "-"
        if row.localisation_acc is not None and full.localisation_acc:
            left = f"{row.localisation_acc / full.localisation_acc:.2f}"
        paper = run.paper.get((row.method, row.keep_ratio))
        prefill = f"{row.median_ttft_ms / full.median_ttft_ms:.2f}"
        more = (prefill, left, "-" if paper is None else f"{paper:.2f}")
        yield "| " + " | ".join((*cells, *more)) + " |"
    yield ""


def rows_table(checkpoint: Path, num_scenes: int) -> Iterator[str]:
    """Yield the table of mean kept rows before every layer, on development scenes."""
    found = measure(checkpoint, num_scenes=num_scenes, keep_ratio=0.25)
    yield "## How far down the picture the kept tokens lie\n"
    yield (
        f"{found.num_prompts} questions for a place about development scenes, a quarter of the "
        "tokens kept, no other stage. 0 is the top row, 1 the bottom; the paper reports 0.807 for "
        "K = 3 and an attention with RoPE.\n"
    )
    yield "| before layer | " + " | ".join(found.table) + " |"
    yield "| " + " | ".join("---" for _ in range(1 + len(found.table))) + " |"
    for layer, rows in enumerate(zip(*found.table.values(), strict=True), start=1):
        yield f"| {layer} | " + " | ".join(f"{row:.3f}" for row in rows) + " |"
    yield ""


def main() -> None:
    """Parse options, evaluate, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="folder written by assemble.py")
    parser.add_argument("--output", type=Path, default=Path("out/evidence"))
    parser.add_argument("--split", choices=("test", "development"), default="test")
    parser.add_argument("--limit", type=int, help="scenes (default: 500)")
    parser.add_argument("--page", type=Path, default=Path("docs/evidence.md"))
    options = parser.parse_args()
    task = asked(options.split, options.limit)
    lines = ["# Pruning a decoder that was pretrained on language\n"]
    lines.append(
        f"SmolLM2-135M-Instruct with the adapters in `models/smol_scene_vlm`, {len(task.samples)} "
        f"scenes ({options.split} split), ONNX Runtime on the CPU, float32. `prefill` is the "
        "median time to the first token by the unpruned one. `left` is localisation by the "
        "unpruned one, here and in the paper.\n"
    )
    lines.append(_COMMANDS)
    for run, evaluation in evaluations(options.checkpoint, options.output, task):
        lines.extend(table(run, evaluation))
    lines.extend(rows_table(options.checkpoint, min(100, len(task.samples))))
    options.page.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
