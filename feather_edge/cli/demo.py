"""``feather-edge demo``: the whole way, on the model that ships with the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from feather_edge.cli._options import backend_option, emit_json, json_option
from feather_edge.cli._progress import progress_bar
from feather_edge.cli._tables import print_table

if TYPE_CHECKING:
    from feather_edge.demo import DemoReport
    from feather_edge.images.geometry import Box


@click.command(epilog="\b\nExample:\n  feather-edge demo -o kept-tokens.png")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("feather-edge-demo.png"),
    help="Picture of the kept tokens over the scenes; replaced if it exists.",
)
@backend_option
@json_option
def command(*, output: Path, backend: str, as_json: bool) -> None:
    """Answer three shipped scenes, unpruned and pruned.

    Exports the model into the user's cache folder. Prints answers, boxes, how well they
    overlap the truth, tokens kept and times, and writes a picture of the tokens that were kept.
    """
    from feather_edge.demo import run_demo

    with progress_bar() as on_progress:
        report = run_demo(output=output, backend=backend, on_progress=on_progress)
    if as_json:
        emit_json(report.to_dict())
    else:
        _print(report)


def _print(report: DemoReport) -> None:
    for scene in report.scenes:
        print_table(
            f"{scene.file}: {scene.question} It is at {_corners(scene.box)}.",
            ("visual tokens", "answer", "IoU", "prefill ms", "first token ms"),
            [
                (
                    " > ".join(map(str, (report.num_visual_tokens, *kept))),
                    _corners(answer.box) if answer.box else answer.result.text,
                    answer.iou,
                    answer.prefill_ms,
                    answer.ttft_ms,
                )
                for answer, kept in (
                    (scene.unpruned, ()),
                    (scene.pruned, (stage.num_kept for stage in scene.pruned.result.stages)),
                )
            ],
        )
    click.echo(f"prefill takes {report.prefill_ratio:.2f} of its unpruned time (median)")
    click.echo(f"bundle: {report.bundle}\npicture of the kept tokens: {report.picture}")


def _corners(box: Box) -> str:
    return ", ".join(f"{value:.0f}" for value in box)
