"""``feather-edge bench``: how long a bundle takes here, unpruned and pruned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from feather_edge.cli._bench_options import (
    asked_requests,
    measuring_options,
    request_options,
    running_options,
    settings_of,
    soak_options,
)
from feather_edge.cli._options import emit_json, json_option, pruning_options
from feather_edge.cli._progress import counting_bar
from feather_edge.cli._tables import print_table

if TYPE_CHECKING:
    from feather_edge.bench.report import Report
    from feather_edge.bundle import Bundle


@click.command(
    epilog="\b\nExample:\n  feather-edge bench bundle --keep-ratio 0.5,0.25 --plot bench.png"
)
@click.argument("bundle", type=click.Path(path_type=Path))
@request_options
@pruning_options(default="from the bundle")
@measuring_options
@running_options
@json_option
def command(*, bundle: Path, duration_s: float | None, as_json: bool, **options: Any) -> None:
    """Measure how long requests take.

    Asks BUNDLE unpruned and pruned in turn, never about the same picture, and prints medians and
    ratios beside the floor: the least that this machine would need. --json prints every sample
    and the conditions, too. Writes nothing but the plot.
    """
    from feather_edge.bundle import Bundle

    opened = Bundle.open(bundle)
    if duration_s is None:
        _measure(opened, as_json=as_json, **options)
    else:
        _soak(opened, duration_s, as_json=as_json, **soak_options(options))


def _measure(
    bundle: Bundle,
    *,
    image: Path | None,
    prompt: str | None,
    plot: Path | None,
    limits: dict[str, float],
    as_json: bool,
    **options: Any,
) -> None:
    from feather_edge.bench import benchmark
    from feather_edge.bench.plot import require_plot, write_plot

    if plot is not None:
        require_plot(plot)
    settings = settings_of(bundle, **options)
    requests = asked_requests(image, prompt, seed=settings.pruning.seed)
    with counting_bar("requests") as on_progress:
        report = benchmark(bundle, requests, settings, on_progress=on_progress)
    if plot is not None:
        write_plot(report, plot)
    if as_json:
        emit_json(report)
    else:
        _print(report)
    report.check(limits)


def _print(report: Report) -> None:
    from feather_edge.bench import table

    click.echo(table.headline(report))
    print_table("At least", table.FLOOR_COLUMNS, table.floor_rows(report))
    print_table("Medians", table.COLUMNS, table.table_rows(report))
    click.echo(table.verdict(report))


def _soak(bundle: Bundle, duration_s: float, *, as_json: bool, **options: Any) -> None:
    from feather_edge.bench.soak import soak

    with counting_bar("seconds") as on_progress:
        report = soak(bundle, duration_s, on_progress=on_progress, **options)
    if as_json:
        emit_json(report)
    else:
        click.echo(report.summary)
    report.check()
