"""``feather-edge fit``: does a model fit a device?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from feather_edge.cli._engine_options import limit_options
from feather_edge.cli._export_options import precision_options
from feather_edge.cli._fit_report import print_fit
from feather_edge.cli._options import emit_json, json_option, pruning_options, stages_option
from feather_edge.recipes import default_recipe_name, load_recipe, override

if TYPE_CHECKING:
    from feather_edge.recipes import EngineProfiles


@click.command(
    epilog="\b\nExample:\n  feather-edge fit demo --target orin-nano-8gb --precision fp16"
)
@click.argument("source", metavar="CHECKPOINT|BUNDLE")
@click.option(
    "--target",
    metavar="NAME|FILE",
    show_default="this machine's CPU",
    help="Recipe of the device, which fills the limits below: orin-nano-8gb, orin-nx-16gb, "
    "agx-orin-32gb, agx-orin-64gb, agx-thor, dgx-spark, rtx, desktop, or a .toml file.",
)
@limit_options
@click.option("--jobs", type=click.IntRange(min=1), default=1, help="Engines built at once.")
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    show_default="feather; demo has its own",
    help="Recipe of the export, which fills the options below; a bundle has its own.",
)
@stages_option(
    default="from the recipe",
    help_text="Decoder layers before which visual tokens are pruned; none leaves it unsplit.",
)
@pruning_options(default="from the recipe")
@precision_options
@json_option
def command(
    *,
    source: str,
    target: str | None,
    max_prompt_tokens: int | None,
    max_visual_tokens: int | None,
    max_cache_capacity: int | None,
    max_batch_size: int | None,
    max_keep_ratio: tuple[float, ...] | None,
    opt_prompt_tokens: int | None,
    profiles: EngineProfiles | None,
    jobs: int,
    recipe: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Tell whether a model fits a device, or what would help.

    Reads CHECKPOINT, a Hugging Face folder whose weights may be missing, a hub id of which only
    the small files are fetched, or `demo`; or BUNDLE, a folder that `feather-edge export` wrote.
    Reads no weights and writes nothing: export, build and run are estimated, at their peaks.
    """
    from feather_edge.fit import fit

    report = fit(
        source,
        target=target,
        recipe=override(load_recipe(recipe or default_recipe_name(source)), **options),
        limits={
            "max_prompt_tokens": max_prompt_tokens,
            "max_visual_tokens": max_visual_tokens,
            "max_cache_capacity": max_cache_capacity,
            "max_batch_size": max_batch_size,
            "max_keep_ratio": max_keep_ratio,
            "opt_prompt_tokens": opt_prompt_tokens,
            "profiles": profiles,
        },
        jobs=jobs,
    )
    emit_json(report.to_dict()) if as_json else print_fit(report)
