"""``feather-edge tune``: what meets a deadline on this device, and what keeps the accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from feather_edge.cli._bench_options import asked_requests, picture_options
from feather_edge.cli._options import (
    backend_options,
    box_format_option,
    emit_json,
    json_option,
    task_options,
    typed_command,
)
from feather_edge.cli._progress import counting_bar
from feather_edge.cli._tune_options import requirement_of, tuning_options
from feather_edge.cli._tune_report import print_report


@click.command(epilog="\b\nExample:\n  feather-edge tune bundle --budget-ttft-ms 120")
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True,
                type=click.Path(path_type=Path))  # fmt: skip
@tuning_options
@task_options
@box_format_option
@picture_options
@click.option("--warmup", type=click.IntRange(min=0), default=3,
              help="Rounds before the first that counts.")  # fmt: skip
@click.option("--repeat", type=click.IntRange(min=1), default=20, help="Rounds that count.")
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path),
    show_default="none is kept", help="Folder of the answers of a search, to go on from.",
)  # fmt: skip
@backend_options
@json_option
@click.pass_context
def command(
    ctx: click.Context, /, *, bundles: tuple[Path, ...], as_json: bool, **options: Any
) -> None:
    """Measure what keep ratios cost on this device, and choose.

    Writes calibration/BACKEND-DEVICE.json into BUNDLE, with the time to the first token of every
    keep ratio, for `run --deadline-ms`. Without --backend it first times the backends that are
    installed against one another, and writes calibration/backends.json: what `auto` is from then
    on, as long as machine, versions and bundle stay the same. Several BUNDLEs are exports with
    other stages, to choose among with --min-accuracy.
    """
    from feather_edge.tune import tune

    requests = asked_requests(options.pop("image"), options.pop("prompt"), seed=0)
    requirement = requirement_of(ctx, options)
    with counting_bar("tuning") as on_progress:
        report = tune(
            bundles, requests, requirement=requirement, command=typed_command(ctx),
            on_progress=on_progress, **options,
        )  # fmt: skip
    emit_json(report) if as_json else print_report(report)
