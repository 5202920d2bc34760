"""``feather-edge inspect``: what a bundle holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from feather_edge.cli._options import emit_json, json_option
from feather_edge.cli._tables import mebibytes, print_table, span

if TYPE_CHECKING:
    from feather_edge.inspection import BundleReport, PrefillReport


@click.command(epilog="\b\nExample:\n  feather-edge inspect bundle --json")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--prompt-tokens",
    type=click.IntRange(min=1),
    show_default="32",
    help="Text tokens beside the visual ones, for the counts and FLOPs of a prefill.",
)
@json_option
def command(*, bundle: Path, prompt_tokens: int | None, as_json: bool) -> None:
    """Show what a bundle holds and what a prefill costs.

    Reads BUNDLE, a folder that `feather-edge export` wrote, and runs nothing of it.
    """
    from feather_edge.bundle import Bundle
    from feather_edge.inspection import describe

    report = describe(Bundle.open(bundle), prompt_tokens=prompt_tokens)
    if as_json:
        emit_json(report)
    else:
        _print(report)


def _print(report: BundleReport) -> None:
    from feather_edge.recipes import describe_recipe

    click.echo(f"{report.path}: {report.model_type} from {report.source}\n")
    click.echo(f"{describe_recipe(report.recipe)}\n")
    print_table(
        "Graphs",
        ("graph", "layers", "nodes", "weights MiB", "file", "TensorRT"),
        [
            (g.name, span(g.layers), f.num_nodes, mebibytes(g.weight_bytes), f.file, f.tensorrt)
            for g in report.graphs
            for f in g.forms
        ],
    )
    for graph in report.graphs:
        tensors = [("in", t) for t in graph.inputs] + [("out", t) for t in graph.outputs]
        print_table(
            f"{graph.name}: inputs and outputs",
            ("", "tensor", "type", "shape"),
            [(way, t.name, t.dtype, ", ".join(map(str, t.shape))) for way, t in tensors],
        )
    _print_prefill(report.prefill)
    print_table(
        "Verified",
        ("backend", "against", "", "worst cosine", "of"),
        [
            (v.subject.backend, v.reference, "passed" if v.passed else "FAILED",
             f"{v.worst_cosine:.6f}", v.worst_output)
            for v in report.verdicts
        ],
    )  # fmt: skip
    print_table(
        "Files",
        ("file", "MiB"),
        [(name, mebibytes(size)) for name, size in report.files.items()],
    )


def _print_prefill(prefill: PrefillReport) -> None:
    print_table(
        f"Prefill of {prefill.num_visual_tokens} visual and {prefill.num_text_tokens} text tokens",
        ("segment", "layers", "visual tokens", "kept"),
        [
            (
                index,
                span(segment.layers),
                segment.num_visual_tokens,
                f"{segment.num_visual_tokens / segment.num_visual_tokens_unpruned:.1%}",
            )
            for index, segment in enumerate(prefill.segments)
        ],
    )
    click.echo(
        f"decoder prefill: {prefill.flops / 1e9:.3f} of {prefill.flops_unpruned / 1e9:.3f} GFLOPs "
        f"({prefill.flops_ratio:.1%})\n  {prefill.formula}\n"
        f"saved by the paper's formula: {prefill.paper_reduction:.1%}\n  {prefill.paper_formula}\n"
    )
