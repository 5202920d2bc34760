"""``feather-edge recipes``: what there is to export by name."""

from __future__ import annotations

import click

from feather_edge.cli._options import emit_json, json_option
from feather_edge.recipes import describe_recipe, load_recipe, recipe_names


@click.command(epilog="\b\nExample:\n  feather-edge recipes feather")
@click.argument("name", required=False)
@json_option
def command(*, name: str | None, as_json: bool) -> None:
    """List the export recipes, or show one.

    Reads the recipes that ship with feather-edge. NAME may also be the path of a .toml file;
    then it is checked and shown with every key that it leaves out.
    """
    if name is not None:
        recipe = load_recipe(name)
        if as_json:
            emit_json(recipe)
        else:
            click.echo(describe_recipe(recipe))
    elif as_json:
        emit_json({each: load_recipe(each) for each in recipe_names()})
    else:
        for each in recipe_names():
            click.echo(f"# {each}\n{describe_recipe(load_recipe(each))}\n")
