"""What pruning costs on the pretrained decoder, beside the paper: writes docs/evidence.md.

    python tools/scene_vlm/assemble.py FOLDER
    python tools/scene_vlm/evidence.py FOLDER --output out/evidence

Hours on a laptop. What was answered and measured is kept in OUTPUT, so the same command goes on
where it was stopped, and `--step page` writes the page of what there is. Times want a quiet
machine: `--step times` measures them alone; delete OUTPUT/times.json to measure them again.
The test split is for the final figures: try things out with --split development.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import kept_rows
import msgspec
from evidence_measures import Overlaps, Times, measure_overlaps, measure_times
from evidence_page import page
from evidence_runs import RUNS, Answers, asked

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = ("answers", "times", "overlaps", "rows", "page")
NUM_ROW_SCENES = 60

Measured = TypeVar("Measured")


def measured(
    path: Path, kind: type[Measured], measure: Callable[[], Measured] | None
) -> Measured | None:
    """Return what a file holds, measured and written where it is missing; None if neither.

    Args:
        path: of the JSON file.
        kind: type of what it holds.
        measure: None to read only.
    """
    if path.exists():
        return msgspec.json.decode(path.read_bytes(), type=kind)
    if measure is None:
        return None
    found = measure()
    path.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    return found


def main() -> None:
    """Parse options, answer, measure, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="folder written by assemble.py")
    parser.add_argument("--output", type=Path, default=Path("out/evidence"))
    parser.add_argument("--split", choices=("test", "development"), default="test")
    parser.add_argument("--limit", type=int, help="scenes (default: 500)")
    parser.add_argument("--step", nargs="+", choices=STEPS, default=STEPS, help="(default: all)")
    parser.add_argument(
        "--run", nargs="+", choices=tuple(RUNS), default=tuple(RUNS),
        help="whose answers; for processes side by side (default: all)",
    )  # fmt: skip
    parser.add_argument("--page", type=Path, default=Path("docs/evidence.md"))
    options = parser.parse_args()
    answers = Answers(
        checkpoint=options.checkpoint,
        output=options.output,
        task=asked(options.split, options.limit),
    )
    # 1. Answers, the hours of it.
    if "answers" in options.step:
        for name, num_scenes in answers.ask(options.run):
            print(f"{name}: {num_scenes} scenes", flush=True)
    # 2. What answers do not tell.
    answers.folder.mkdir(parents=True, exist_ok=True)
    times = measured(
        answers.output / "times.json",
        Times,
        (lambda: measure_times(answers)) if "times" in options.step else None,
    )
    overlaps = measured(
        answers.folder / "overlaps.json",
        Overlaps,
        (lambda: measure_overlaps(answers)) if "overlaps" in options.step else None,
    )
    rows = measured(
        answers.output / "rows.json",
        kept_rows.KeptTokens,
        (lambda: kept_rows.measure(options.checkpoint, num_scenes=NUM_ROW_SCENES, keep_ratio=0.25))
        if "rows" in options.step
        else None,
    )
    # 3. The page, of what there is.
    if "page" in options.step:
        options.page.write_text(page(answers, times, overlaps, rows), encoding="utf-8")
        print(options.page)


if __name__ == "__main__":
    main()
