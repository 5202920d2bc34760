"""How ``feather-edge verify`` prints what it found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from feather_edge.cli._tables import print_table

if TYPE_CHECKING:
    from feather_edge.evaluate.parity_report import VerifyReport

__all__ = ["print_parity"]


def print_parity(report: VerifyReport, *, with_all: bool) -> None:
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
