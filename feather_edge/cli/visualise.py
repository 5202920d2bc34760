"""``feather-edge visualise``: what pruning kept, over the picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from feather_edge.cli._options import (
    backend_options,
    box_format_option,
    emit_json,
    json_option,
    only_given,
    pruning_options,
)

if TYPE_CHECKING:
    from feather_edge.pruning import Pruning


@click.command(
    epilog="\b\nExample:\n  feather-edge visualise bundle --image scene.png "
    '--prompt "how many stars are there?" --prune feather,fastv,uniform -o kept.png'
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--image",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="Picture to ask about.",
)
@click.option("--prompt", required=True, help="What to ask.")
@pruning_options(default="from the bundle", takes_several=True)
@box_format_option
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="PNG to write; replaced if it exists.",
)
@backend_options
@json_option
def command(
    *,
    bundle: Path,
    image: Path,
    prompt: str,
    box_format: Any,
    output: Path,
    backend: str,
    target: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw what pruning kept and lost.

    Asks BUNDLE once unpruned and once with each criterion. Writes a contact sheet: per criterion
    the answer and its box, and for each stage the kept tokens and the scores as a heat map.
    """
    from feather_edge.runtime.session import Session
    from feather_edge.viz import name_of, visualise

    with Session.open(bundle, backend=backend, target=target) as session:
        prunings = _prunings(session.pruning, **options)
        shown = visualise(session, image, prompt, prunings=prunings, box_format=box_format)
    shown.sheet.save(output, format="PNG")
    if as_json:
        emit_json({"picture": str(output), **shown.to_dict()})
        return
    for result in (shown.unpruned, *shown.results):
        kept = " > ".join(str(stage.num_kept) for stage in result.stages)
        click.echo(f"{name_of(result)}: {result.text} (kept {kept})")
    click.echo(str(output))


def _prunings(
    base: Pruning, *, prune: tuple[str, ...] | None, pre_prune: str | None, **options: Any
) -> list[Pruning]:
    """Lay the options that were given over the bundle's own, once for every criterion."""
    from feather_edge.pruning.overrides import override_each

    each = [dataclasses.replace(base, criterion=name) for name in prune or (base.criterion,)]
    return override_each(each, **only_given(pre_criterion=pre_prune, **options))
