"""``feather-edge verify``: comparing backends, and how what was found is printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from feather_edge.cli._options import emit_json
from feather_edge.cli._tables import print_table

if TYPE_CHECKING:
    from pathlib import Path

    from feather_edge.evaluate.parity_report import VerifyReport

__all__ = ["verify_backends"]


def verify_backends(
    folder: Path,
    *,
    checkpoint: str | None,
    recipe: str | None,
    image: Path | None,
    prompt: str | None,
    lowest_cosine: float | None,
    lowest_overlap: float | None,
    with_receipt: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare, print, and write the receipt.

    Raises:
        ParityError: if anything is below its threshold.
    """
    from feather_edge.bundle import Bundle
    from feather_edge.checkpoint import resolve_checkpoint
    from feather_edge.recipes import load_recipe, override
    from feather_edge.runtime.receipt import write_receipt
    from feather_edge.samples import Sample
    from feather_edge.verify import verify_chain

    if (image is None) != (prompt is None):
        raise click.UsageError("--image and --prompt go together")
    own = () if image is None else (Sample(name=image.name, image=image, prompt=prompt or ""),)
    bundle = Bundle.open(folder)
    wanted = bundle.manifest.recipe if recipe is None else load_recipe(recipe)
    report = verify_chain(
        bundle,
        checkpoint=None if checkpoint is None else resolve_checkpoint(checkpoint),
        recipe=override(wanted, lowest_cosine=lowest_cosine, lowest_overlap=lowest_overlap),
        samples=own,
        **options,
    )
    if as_json:
        emit_json(report)
    else:
        for each in report.reports:
            _print_parity(each, with_all=bool(options["layers"]))
        for reason in report.skipped:
            click.echo(f"not compared: {reason}")
    if with_receipt:
        write_receipt(bundle, *(each.verdict for each in report.reports))
    report.check()


def _print_parity(report: VerifyReport, *, with_all: bool) -> None:
    """Print tables of outputs and kept rows, then a line for each answer."""
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
    click.echo()
