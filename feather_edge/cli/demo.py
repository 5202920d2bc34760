"""``feather-edge demo``: the whole way, on the model that ships with the package."""

from __future__ import annotations

from pathlib import Path

import click

from feather_edge.cli._options import backend_option, emit_json, json_option
from feather_edge.cli._progress import progress_bar


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

    Exports the model into a cache folder on first use. Prints answers, boxes, how well they
    overlap the truth, tokens kept and times, and writes a picture of the tokens that were kept.
    """
    from feather_edge.demo import run_demo

    with progress_bar() as on_progress:
        report = run_demo(output=output, backend=backend, on_progress=on_progress)
    if as_json:
        emit_json(report.to_dict())
    else:
        click.echo(report.to_text())
