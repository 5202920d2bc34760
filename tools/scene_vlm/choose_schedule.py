"""Compare pruning schedules of the scene model on development scenes, through ONNX Runtime.

    python tools/scene_vlm/choose_schedule.py CHECKPOINT --stages 2,4 --stages 4,6 \
        --keep-ratio 0.3 --keep-ratio 0.5,0.25 --criterion feather --criterion fastv

Prints a table, and one JSON document with --json. Never run it on the test split.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluate import Outcome, score, summarise

from feather_edge.evaluate.scenes import unseen_scenes
from feather_edge.export.pipeline import export
from feather_edge.inspection import describe
from feather_edge.pruning import Pruning
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from feather_edge.evaluate.scenes import Question, Scene

Numbers = tuple[float, ...]


def outcomes_of(
    session: Session, scenes: list[tuple[Scene, list[Question]]], pruning: Pruning
) -> list[Outcome]:
    """Return the outcome of every question about ``scenes``."""
    outcomes = []
    for scene, questions in scenes:
        for question in questions:
            text = session.generate(scene.image, question.text, pruning=pruning).text
            outcomes.append(Outcome(question=question, text=text, score=score(question, text)))
    return outcomes


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield one row per stages, criterion and keep ratio, the unpruned model first."""
    scenes = list(unseen_scenes("development", options.num_scenes))
    yield _row(options, scenes, stages=(), pruning=Pruning(criterion="none"))
    for stages, criterion, keep_ratio in itertools.product(
        options.stages, options.criterion, options.keep_ratio
    ):
        if len(keep_ratio) in {1, len(stages)}:
            pruning = Pruning(criterion=criterion, keep_ratio=keep_ratio, stride=options.stride)
            yield _row(options, scenes, stages=tuple(map(int, stages)), pruning=pruning)


def _row(
    options: argparse.Namespace,
    scenes: list[tuple[Scene, list[Question]]],
    *,
    stages: tuple[int, ...],
    pruning: Pruning,
) -> dict[str, Any]:
    recipe = ExportRecipe(
        stages=stages,
        prune=pruning.criterion,  # type: ignore[arg-type]
        keep_ratio=pruning.keep_ratio,
        stride=pruning.stride,
        opset="23",
    )
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(options.checkpoint, Path(folder) / "bundle", recipe)
        with Session.open(bundle) as session:
            summary = summarise(outcomes_of(session, scenes, pruning))
        prefill = describe(bundle).prefill
    return {
        "criterion": pruning.criterion,
        "stages": stages,
        "keep_ratio": pruning.keep_ratio,
        "num_visual_tokens": [segment.num_visual_tokens for segment in prefill.segments],
        "paper_reduction": round(prefill.paper_reduction, 3),
        "localisation": summary["localisation"]["accuracy"],
        "coarse": summary["coarse (all)"]["accuracy"],
    }


def _numbers(text: str) -> Numbers:
    return tuple(float(part) for part in text.split(","))


def main() -> None:
    """Parse options, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--stages", type=_numbers, action="append", required=True)
    parser.add_argument("--keep-ratio", type=_numbers, action="append", required=True)
    parser.add_argument("--criterion", action="append", required=True)
    parser.add_argument("--stride", type=int, default=3)
    parser.add_argument("--num-scenes", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    table = []
    for row in rows(options):
        table.append(row)
        if not options.json:
            print(*(f"{name}={value}" for name, value in row.items()), flush=True)
    if options.json:
        print(json.dumps(table))


if __name__ == "__main__":
    main()
