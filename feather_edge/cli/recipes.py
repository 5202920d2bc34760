"""``feather-edge recipes``: what there is to export, and for what to build, by name."""

from __future__ import annotations

from typing import get_args

import click

from feather_edge.cli._options import emit_json, json_option
from feather_edge.recipes import (
    Stage,
    describe_recipe,
    load_engine_recipe,
    load_recipe,
    recipe_names,
)


@click.command(epilog="\b\nExample:\n  feather-edge recipes feather")
@click.argument("name", required=False)
@click.option(
    "--stage",
    type=click.Choice(get_args(Stage)),
    default="export",
    help="export: recipes of `export`. engines: targets of `build-engine`.",
)
@json_option
def command(*, name: str | None, stage: Stage, as_json: bool) -> None:
    """List the recipes of a stage, or show one.

    Reads the recipes that ship with feather-edge. NAME may also be the path of a .toml file;
    then it is checked and shown with every key that it leaves out.
    """
    load = load_recipe if stage == "export" else load_engine_recipe
    if name is not None:
        recipe = load(name)
        if as_json:
            emit_json(recipe)
        else:
            click.echo(describe_recipe(recipe))
    elif as_json:
        emit_json({each: load(each) for each in recipe_names(stage)})
    else:
        for each in recipe_names(stage):
            click.echo(f"# {each}\n{describe_recipe(load(each))}\n")
