"""``feather-edge families``: whose checkpoints can be exported."""

from __future__ import annotations

import click

from feather_edge.cli._options import emit_json, json_option
from feather_edge.cli._tables import print_table


@click.command(epilog="\b\nExample:\n  feather-edge families")
@json_option
def command(*, as_json: bool) -> None:
    """List the model families that can be exported.

    Reads nothing. A family is named by the model_type of its config.json, and is listed only
    where its answers equal those of transformers in this project's tests.
    """
    from feather_edge.export.families import family_infos

    infos = family_infos()
    if as_json:
        emit_json(infos)
        return
    rows = [(i.model_type, ", ".join(i.towers), ", ".join(i.decoders), i.images) for i in infos]
    print_table("Model families", ("model_type", "vision towers", "decoders", "a picture"), rows)
    for info in infos:
        examples = ", ".join(info.examples)
        limits = f"; {info.limits}" if info.limits else ""
        click.echo(f"{info.model_type}: such as {examples}{limits}")
