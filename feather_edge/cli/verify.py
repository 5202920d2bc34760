"""``feather-edge verify``: the same inputs, two backends, compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from feather_edge.cli._file_check import check_files
from feather_edge.cli._options import BACKENDS, engine_run_options, json_option, refuse_typed
from feather_edge.cli._parity_tables import verify_backends
from feather_edge.cli._precision_report import (
    REPORT_OPTIONS,
    precision_report_options,
    run_precision_report,
)


@click.command(
    epilog="\b\nExample:\n  feather-edge verify bundle --backend tensorrt --target agx-orin-64gb"
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--checkpoint",
    metavar="FOLDER|HUB_ID|demo",
    help="Compare with the checkpoint that BUNDLE was exported from, too; extra `torch`.",
)
@click.option(
    "--backend",
    type=click.Choice([name for name in BACKENDS if name != "auto"]),
    show_default="all that there is here",
    help="What to compare with ONNX Runtime; with onnxruntime, another form of the graphs.",
)
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    show_default="the one in BUNDLE",
    help="Export recipe with the thresholds, and the grid that kept tokens must have.",
)
@engine_run_options
@click.option(
    "--opset",
    type=click.IntRange(min=1),
    show_default="the oldest",
    help="With onnxruntime: the form of the graphs to compare with the one that it runs.",
)
@click.option(
    "--image",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    show_default="two shipped scenes",
    help="Picture to ask about; goes with --prompt.",
)
@click.option("--prompt", help="What to ask; goes with --image.")
@click.option(
    "--layers",
    is_flag=True,
    help="Compare every layer too; with --checkpoint and onnxruntime only.",
)
@click.option(
    "--fail-below",
    "lowest_cosine",
    type=click.FloatRange(-1, 1),
    show_default="from the recipe, or by precision",
    help="Least cosine of any output of any graph.",
)
@click.option(
    "--fail-below-overlap",
    "lowest_overlap",
    type=click.FloatRange(0, 1),
    show_default="from the recipe",
    help="Least share of the kept rows that a graph has in common with the reference.",
)
@click.option("--files", is_flag=True, help="Compare every file with its hash, nothing else.")
@click.option(
    "--receipt/--no-receipt",
    "with_receipt",
    default=True,
    help="Write what was found into BUNDLE, as verify.json; run and doctor show it.",
)
@precision_report_options
@json_option
@click.pass_context
def command(ctx: click.Context, /, bundle: Path, *, as_json: bool, **options: Any) -> None:
    """Compare a bundle with its checkpoint, backends, or hashes.

    Every graph gets the inputs that it gets in ONNX Runtime; then both answer on their own.
    Prints how far outputs are apart, which kept rows and answers agree, and ends with status 1
    where they do not. Reads BUNDLE and writes verify.json into it.
    """
    of_report = {name: options.pop(name) for name in REPORT_OPTIONS}
    if options.pop("files"):
        refuse_typed(ctx, (*options, *of_report), why="on --files")
        check_files(bundle, as_json=as_json)
    elif of_report["reference"] is not None:
        refuse_typed(ctx, sorted({*options} - {"backend"}), why="on --precision-report")
        run_precision_report(bundle, options["backend"], as_json=as_json, **of_report)
    else:
        refuse_typed(ctx, of_report, why="without --precision-report")
        verify_backends(bundle, as_json=as_json, **options)
