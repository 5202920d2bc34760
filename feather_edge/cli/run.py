"""``feather-edge run``: image and prompt to a streamed answer."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from feather_edge.cli._options import (
    BACKENDS,
    emit_json,
    json_option,
    only_given,
    pruning_options,
)

if TYPE_CHECKING:
    from feather_edge.runtime.session import Session


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
@click.option(
    "--temperature", type=click.FloatRange(min=0), show_default="0: greedy", help="Of sampling."
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    show_default="1: all tokens",
    help="Sample among the likeliest tokens that together have this probability.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    show_default="from the bundle",
    help="Stop after this many tokens.",
)
@click.option(
    "--backend", type=click.Choice(BACKENDS), default="auto", help="What runs the graphs."
)
@json_option
def command(
    *,
    bundle: Path,
    images: tuple[Path, ...],
    prompt: str,
    max_new_tokens: int | None,
    backend: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Answer a prompt about one or more pictures.

    Reads BUNDLE, a folder that `feather-edge export` wrote, and streams the answer to standard
    output. The pruning options hold for this request alone; the bundle stays as it is.
    """
    from feather_edge.runtime.session import Session

    loaded = [_picture(path) for path in images]
    with Session.open(bundle, backend=backend) as session:
        request = _request(session, **options) | {"max_new_tokens": max_new_tokens}
        if as_json:
            emit_json(session.generate(loaded, prompt, **request).to_dict())
            return
        for token in session.stream(loaded, prompt, **request):
            click.echo(token.text, nl=False)
        click.echo()


def _picture(path: Path) -> Path | bytes:
    """Return what `Session` takes: a path, or the bytes that came through a pipe."""
    return sys.stdin.buffer.read() if str(path) == "-" else path


def _request(
    session: Session, *, prune: str | None, temperature: float | None, top_p: float | None,
    seed: int | None, **pruning: Any,
) -> dict[str, Any]:  # fmt: skip
    """Lay the options that were given over the bundle's own defaults."""
    given = only_given(criterion=prune, seed=seed, **pruning)
    sampling = only_given(temperature=temperature, top_p=top_p, seed=seed)
    return {
        "pruning": dataclasses.replace(session.default_pruning, **given),
        "sampling": dataclasses.replace(session.default_sampling, **sampling),
    }
