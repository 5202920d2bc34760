"""``feather-edge doctor``: what works on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from feather_edge.cli._options import emit_json, json_option

if TYPE_CHECKING:
    from feather_edge.doctor import Report


@click.command(epilog="\b\nExample:\n  feather-edge doctor --json")
@json_option
def command(*, as_json: bool) -> None:
    """Tell which backends work here, and what to install.

    Reads the installed packages and runs a one-node graph on every backend that this version
    supports. Writes nothing.
    """
    from feather_edge.doctor import examine

    report = examine()
    if as_json:
        emit_json(report)
    else:
        _print(report)


def _print(report: Report) -> None:
    """Print plain aligned columns: people paste this into reports."""
    click.echo(f"feather-edge {report.version}, Python {report.python}, {report.platform}\n")
    for each in report.backends:
        line = f"{each.name:<16}{each.device:<10}{each.state:<10}{each.remedy or ''}"
        click.echo(line.rstrip())
    click.echo()
    for name, version in report.packages.items():
        click.echo(f"{name:<20}{version or '-'}")
    for note in report.notes:
        click.echo(f"\nNote: {note}")
