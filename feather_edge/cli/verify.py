"""``feather-edge verify``: the same inputs, two backends, compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from feather_edge.cli._options import BACKENDS, emit_json, engine_run_options, json_option
from feather_edge.cli._tables import print_table

if TYPE_CHECKING:
    from feather_edge.evaluate.parity_report import VerifyReport


@click.command(
    epilog="\b\nExample:\n  feather-edge verify bundle --backend tensorrt --target agx-orin-64gb"
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--backend",
    type=click.Choice([name for name in BACKENDS if name != "auto"]),
    required=True,
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
    show_default="0.9999, with fp16 0.99",
    help="Least cosine of any output of any graph.",
)
@click.option(
    "--fail-below-overlap",
    "lowest_overlap",
    type=click.FloatRange(0, 1),
    show_default="0.9",
    help="Least share of the kept rows that a graph has in common with the reference.",
)
@json_option
def command(
    *, bundle: Path, image: Path | None, prompt: str | None, as_json: bool, **options: object
) -> None:
    """Compare a backend with ONNX Runtime, graph by graph.

    Every graph gets the inputs that it gets in ONNX Runtime; then both answer on their own.
    Prints how far outputs are apart, which kept rows and answers agree, and ends with status 1
    where they do not. Reads BUNDLE, writes nothing.
    """
    from feather_edge.bundle import Bundle
    from feather_edge.verify import Sample, verify

    if (image is None) != (prompt is None):
        raise click.UsageError("--image and --prompt go together")
    own = () if image is None else (Sample(name=image.name, image=image, prompt=prompt or ""),)
    report = verify(Bundle.open(bundle), samples=own, **options)  # type: ignore[arg-type]
    if as_json:
        emit_json(report)
    else:
        _print(report, with_all=bool(options["layers"]))
    report.check()


def _print(report: VerifyReport, *, with_all: bool) -> None:
    click.echo(f"{report.bundle}: {report.tested} against {report.reference}\n")
    print_table(
        "Same inputs, graph by graph" + ("" if with_all else ": the worst output of each"),
        ("graph", "phase", "output", "cosine", "max abs", "not finite", "sample"),
        [
            (t.graph, t.phase, t.tensor, f"{t.cosine:.6f}", f"{t.max_abs:.2g}", t.num_not_finite,
             t.sample)
            for t in (report.tensors if with_all else report.worst_of_each_graph)
        ],
    )  # fmt: skip
    print_table(
        "Kept rows",
        ("graph", "sample", "in common", "best by its own scores"),
        [
            (k.graph, k.sample, f"{k.overlap:.1%}", "yes" if k.is_top_k else "NO")
            for k in report.kept
        ],
    )
    for line in report.last_lines:
        click.echo(line)
