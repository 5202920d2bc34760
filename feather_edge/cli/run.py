"""``feather-edge run``: image and prompt to a streamed answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from feather_edge.cli._options import (
    backend_options,
    cuda_graphs_option,
    deadline_option,
    emit_json,
    json_option,
    pruning_options,
    region_options,
    sampling_options,
    stages_option,
)
from feather_edge.cli._requests import request_options


@click.command(
    epilog="\b\nExample:\n  feather-edge run bundle --image scene.png "
    '--prompt "where is the red circle?" --keep-ratio 0.5,0.25'
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--image",
    "images",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    multiple=True,
    required=True,
    help="Picture to ask about; may be repeated. - reads standard input.",
)
@click.option("--prompt", required=True, help="What to ask.")
@pruning_options(default="from the bundle")
@deadline_option
@region_options
@stages_option(default="the bundle's", help_text="Fixed by the export; others are refused.")
@sampling_options
@backend_options
@cuda_graphs_option
@json_option
def command(
    *,
    bundle: Path,
    images: tuple[Path, ...],
    prompt: str,
    max_new_tokens: int | None,
    backend: str,
    target: str | None,
    cuda_graphs: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Answer a prompt about one or more pictures.

    Reads BUNDLE, a folder that `feather-edge export` wrote, and streams the answer to standard
    output. The pruning options hold for this request alone; the bundle stays as it is.
    """
    from feather_edge.runtime.session import Session

    pictures = [sys.stdin.buffer.read() if str(path) == "-" else path for path in images]
    with Session.open(bundle, backend=backend, target=target, cuda_graphs=cuda_graphs) as session:
        request = request_options(session, **options) | {"max_new_tokens": max_new_tokens}
        if as_json:
            emit_json(session.generate(pictures, prompt, **request).to_dict())
            return
        for token in session.stream(pictures, prompt, **request):
            click.echo(token.text, nl=False)
        click.echo()
        if session.last_result and session.last_result.deadline:
            click.echo(session.last_result.deadline.reason, err=True)
        click.echo(str(session.verification), err=True)
        for note in session.notes:
            click.echo(f"note: {note}", err=True)
