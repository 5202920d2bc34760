"""How ``fit`` speaks to people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from feather_edge.cli._tables import print_table

if TYPE_CHECKING:
    from feather_edge.fit import FitReport

__all__ = ["print_fit", "report_fit"]


def report_fit(report: FitReport) -> None:
    """Say on standard error what was not refused although it is near or beyond what there is."""
    for stage in report.stages:
        if stage.verdict != "fits":
            what = "would be tight" if stage.verdict == "tight" else "does not fit"
            click.echo(
                f"note: {stage.name} {what}: about {stage.peak_mib:.0f} MiB at its peak, and "
                f"there are {report.available}",
                err=True,
            )


def print_fit(report: FitReport) -> None:
    """Print a report for people."""
    click.echo(f"{report.source} on {report.target}: {report.verdict} ({report.available})\n")
    print_table(
        "memory at the peak of each stage, MiB",
        ("stage", "peak", "there is", "verdict", "of which"),
        (
            (
                stage.name,
                round(stage.peak_mib),
                "?" if stage.available_mib is None else f"{stage.available_mib:.0f}",
                stage.verdict,
                ", ".join(f"{name} {size:.0f}" for name, size in stage.parts.items()),
            )
            for stage in report.stages
        ),
    )
    print_table(
        "graphs, MiB",
        ("graph", "rows", "KV cache", "activations", "weights"),
        (
            (
                graph.name,
                graph.rows,
                graph.cache_mib,
                graph.activations_mib,
                ", ".join(f"{kind} {size:.1f}" for kind, size in graph.weights_mib.items()),
            )
            for graph in report.graphs
        ),
    )
    disk = report.disk
    free = "" if disk.available_mib is None else f", {disk.available_mib:.0f} MiB are free"
    click.echo(f"disk: bundle {disk.bundle_mib:.0f} MiB, engines {disk.engines_mib:.0f} MiB{free}")
    for note in report.notes:
        click.echo(f"note: {note}")
    if report.advice:
        click.echo("what would help, each alone:")
    for advice in report.advice:
        click.echo(f"  {advice}")
