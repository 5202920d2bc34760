"""``feather-edge verify``: the same inputs, two backends, compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from feather_edge.cli._file_check import check_files
from feather_edge.cli._options import BACKENDS, emit_json, engine_run_options, json_option
from feather_edge.cli._parity_tables import print_parity
from feather_edge.cli._precision_report import precision_report_options, run_precision_report


@click.command(
    epilog="\b\nExample:\n  feather-edge verify bundle --backend tensorrt --target agx-orin-64gb"
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--backend",
    type=click.Choice([name for name in BACKENDS if name != "auto"]),
    help="What to compare with ONNX Runtime: engines, or with onnxruntime another opset.",
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
@click.option("--layers", is_flag=True, help="Compare every layer too; with onnxruntime only.")
@click.option(
    "--fail-below",
    "lowest_cosine",
    type=click.FloatRange(-1, 1),
    show_default="0.9999 with fp32, else 0.99",
    help="Least cosine of any output of any graph.",
)
@click.option(
    "--fail-below-overlap",
    "lowest_overlap",
    type=click.FloatRange(0, 1),
    show_default="0.9",
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
def command(
    *,
    bundle: Path,
    image: Path | None,
    prompt: str | None,
    files: bool,
    with_receipt: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare backends, precisions, or files with their hashes.

    Every graph gets the inputs that it gets in ONNX Runtime; then both answer on their own.
    Prints how far outputs are apart, which kept rows and answers agree, and ends with status 1
    where they do not. Reads BUNDLE and writes verify.json into it.
    """
    if files:
        check_files(bundle, as_json=as_json)
        return
    report_options = {name: options.pop(name) for name in ("reference", "task", "limit", "text")}
    if report_options["reference"] is not None:
        run_precision_report(bundle, as_json=as_json, **report_options)
        return
    if options["backend"] is None:
        raise click.UsageError("give --backend, --precision-report BUNDLE, or --files")
    from feather_edge.bundle import Bundle
    from feather_edge.runtime.receipt import write_receipt
    from feather_edge.samples import Sample
    from feather_edge.verify import verify

    if (image is None) != (prompt is None):
        raise click.UsageError("--image and --prompt go together")
    own = () if image is None else (Sample(name=image.name, image=image, prompt=prompt or ""),)
    opened = Bundle.open(bundle)
    report = verify(opened, samples=own, **options)
    if with_receipt:
        write_receipt(opened, report.verdict)
    if as_json:
        emit_json(report)
    else:
        print_parity(report, with_all=bool(options["layers"]))
    report.check()
