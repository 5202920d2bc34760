"""The options of ``deploy`` that are not those of ``export``, and what they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from feather_edge.cli._options import all_of, only_given
from feather_edge.cli._parsers import parse_plugin
from feather_edge.recipes import default_recipe_name, load_recipe, override
from feather_edge.runtime.backend_names import GRAPH_BACKENDS

if TYPE_CHECKING:
    from feather_edge.deploy.deployment import Deployment

__all__ = ["chain_options", "read_deployment"]

STAGES = ("fit", "export", "build-engine", "verify", "bench")

chain_options = all_of(
    click.option(
        "--target",
        required=True,
        metavar="cpu|NAME|FILE",
        help="cpu for this machine's own, which needs no engines, or what build-engine --target "
        "takes. Activations are in the type that suits it, unless --precision says otherwise.",
    ),
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        required=True,
        help="Folder of the bundle; one that was deployed from CHECKPOINT is brought up to date.",
    ),
    click.option(
        "--backend",
        type=click.Choice([name for name in GRAPH_BACKENDS if name != "auto"]),
        show_default="onnxruntime",
        help="What runs the graphs of target cpu.",
    ),
    click.option(
        "--plugin",
        callback=parse_plugin,
        default="none",
        metavar="LIB|auto|none",
        help="Library of the selection op for engines; auto takes what build-plugin left.",
    ),
    click.option(
        "--warmup",
        type=click.IntRange(min=0),
        show_default="3",
        help="Rounds of the benchmark before the first that counts.",
    ),
    click.option(
        "--repeat",
        type=click.IntRange(min=1),
        show_default="20",
        help="Rounds of the benchmark that count.",
    ),
    click.option(
        "--against-checkpoint",
        is_flag=True,
        help="Verify the graphs against CHECKPOINT in transformers too (extra `torch`); needs "
        "memory for all of it.",
    ),
    click.option(
        "--from-stage",
        type=click.Choice(STAGES),
        show_default="the first that is not up to date",
        help="Do this stage and all later ones again; take those before as they are recorded.",
    ),
    click.option(
        "--report",
        "page",
        type=click.Path(dir_okay=False, path_type=Path),
        show_default="report.html in the bundle",
        help="Write the report here too.",
    ),
    click.option("--dry-run", is_flag=True, help="Print what would be done and why; do nothing."),
    click.option(
        "-f",
        "--force",
        is_flag=True,
        help="Go on where it does not fit, and replace a bundle of another origin.",
    ),
    click.option(
        "--recipe",
        metavar="NAME|FILE",
        show_default="feather; demo has its own",
        help="Recipe that fills the options below; see `feather-edge recipes`.",
    ),
)


def read_deployment(
    *,
    checkpoint: str,
    target: str,
    output: Path,
    backend: str | None,
    plugin: Path | None,
    warmup: int | None,
    repeat: int | None,
    against_checkpoint: bool,
    force: bool,
    recipe: str | None,
    **options: Any,
) -> Deployment:
    """Return what the options ask for; ``options`` are those of the recipe.

    Raises:
        RecipeError: if there is no such target or recipe, or an option is not allowed.
    """
    from feather_edge.deploy.deployment import Deployment
    from feather_edge.deploy.target import read_target, suit_recipe

    wanted = read_target(target, backend=backend)
    asked = override(load_recipe(recipe or default_recipe_name(checkpoint)), **options)
    return Deployment(
        checkpoint=checkpoint,
        output=output,
        target=wanted,
        recipe=suit_recipe(asked, wanted, is_named=options["precision"] is not None),
        plugin=plugin,
        against_checkpoint=against_checkpoint,
        force=force,
        **only_given(warmup=warmup, repeat=repeat),
    )
