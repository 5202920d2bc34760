"""``feather-edge export``: checkpoint to bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from feather_edge.cli._export_options import precision_options
from feather_edge.cli._fit_report import report_fit
from feather_edge.cli._options import emit_json, json_option, pruning_options, stages_option
from feather_edge.cli._progress import progress_bar
from feather_edge.recipes import default_recipe_name, load_recipe, override


@click.command(
    epilog="\b\nExample:\n  feather-edge export demo -o bundle --prune feather --keep-ratio 0.5"
)
@click.argument("checkpoint")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the bundle; it must not exist yet.",
)
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    show_default="feather; demo has its own",
    help="Recipe that fills the options below; see `feather-edge recipes`.",
)
@stages_option(
    default="from the recipe",
    help_text="Decoder layers before which visual tokens are pruned; none leaves it unsplit.",
)
@pruning_options(default="from the recipe")
@precision_options
@click.option(
    "-f",
    "--force",
    is_flag=True,
    help="Replace a bundle that exists, and export what may not fit into memory.",
)
@json_option
def command(
    *,
    checkpoint: str,
    output: Path,
    recipe: str | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Export a checkpoint as a bundle of split ONNX graphs.

    Reads CHECKPOINT: a local Hugging Face folder, a hub id (extra `hub`), or `demo` for the model
    that ships with feather-edge. Writes a folder with graphs, embeddings, tokenizer and
    manifest.json. Layers, precision and opset are fixed here; the rest are defaults of requests.
    """
    from feather_edge.checkpoint import resolve_checkpoint
    from feather_edge.export.pipeline import export
    from feather_edge.fit import require_fit

    effective = override(load_recipe(recipe or default_recipe_name(checkpoint)), **options)
    report_fit(
        require_fit(checkpoint, recipe=effective, stages=("export",), folder=output, force=force)
    )
    folder = resolve_checkpoint(checkpoint)
    with progress_bar() as on_progress:
        bundle = export(folder, output, effective, force=force, on_progress=on_progress)
    num_bytes = sum(record.num_bytes for record in bundle.manifest.files.values())
    if as_json:
        recipe_in_force = bundle.manifest.recipe
        emit_json({"bundle": str(output), "num_bytes": num_bytes, "recipe": recipe_in_force})
    else:
        layers = ", ".join(map(str, bundle.schedule.stages)) or "none"
        click.echo(f"{output}: {num_bytes / 2**20:.1f} MiB, prunes before layers: {layers}")
