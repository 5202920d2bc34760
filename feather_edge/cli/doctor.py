"""``feather-edge doctor``: what works on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from feather_edge.cli._options import emit_json, json_option

if TYPE_CHECKING:
    from feather_edge.doctor import Report


@click.command(epilog="\b\nExample:\n  feather-edge doctor --json")
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@json_option
def command(*, bundle: Path | None, as_json: bool) -> None:
    """Tell what works on this machine, and what to install.

    Reads what the machine and the installed packages say of themselves, runs a one-node graph on
    every backend that this version supports, and with BUNDLE opens its graphs and its engines.
    Writes nothing.
    """
    from feather_edge.doctor import examine

    report = examine(bundle)
    if as_json:
        emit_json(report)
    else:
        _print(report)


def _print(report: Report) -> None:
    """Print plain aligned columns: people paste this into reports."""
    click.echo(f"feather-edge {report.version}, Python {report.python}, {report.platform}")
    click.echo(f"{describe_platform(report)}\n")
    for each in report.backends:
        line = f"{each.name:<16}{each.device:<10}{each.state:<10}{each.remedy or ''}"
        click.echo(line.rstrip())
    click.echo()
    for name, version in report.packages.items():
        click.echo(f"{name:<20}{version or '-'}")
    for loading in report.bundle:
        what = f"engines for {loading.target}" if loading.target else "graphs"
        click.echo(f"\nBundle: {loading.backend}, {what}: {loading.failure or 'loads'}")
        if loading.verification is not None:
            click.echo(f"  {loading.verification}")
    for note in report.notes:
        click.echo(f"\nNote: {note}")


def describe_platform(report: Report) -> str:
    """Return what the machine's files say, in one line; what none says is left out."""
    facts = report.facts
    clocks = "now {} MHz of {}".format(*facts.gpu_clock_mhz) if facts.gpu_clock_mhz else None
    known = {
        "board": facts.board,
        "JetPack": facts.jetpack,
        "L4T": facts.l4t,
        "CUDA": facts.cuda,
        "TensorRT": facts.tensorrt,
        "driver": facts.driver,
        "GPU": report.gpu or (f"sm {facts.compute_capability}" if facts.board else None),
        "GPU clock": clocks,
        "power mode": facts.power_mode,
        "memory": f"{facts.free_memory_mib} of {facts.memory_mib} MiB free",
        "swap": f"{facts.swap_mib} MiB",
    }
    return ", ".join(f"{name} {value}" for name, value in known.items() if value)
