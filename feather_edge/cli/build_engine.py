"""``feather-edge build-engine``: bundle to engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from feather_edge.cli._engine_options import recipe_options
from feather_edge.cli._fit_report import report_fit
from feather_edge.cli._options import emit_json, json_option
from feather_edge.cli._parsers import parse_plugin
from feather_edge.cli._progress import build_progress

if TYPE_CHECKING:
    from feather_edge.engines.build import BuildReport


@click.command(epilog="\b\nExample:\n  feather-edge build-engine bundle --target orin-nano-8gb")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--target",
    required=True,
    metavar="NAME|FILE",
    help="Recipe of the device, which fills the options below: orin-nano-8gb, orin-nx-16gb, "
    "agx-orin-32gb, agx-orin-64gb, agx-thor, dgx-spark, rtx, desktop, or a .toml file.",
)
@recipe_options
@click.option(
    "--plugin",
    callback=parse_plugin,
    default="none",
    metavar="LIB|auto|none",
    help="Library of the selection op; auto takes what build-plugin left in engines/out.",
)
@click.option("--jobs", type=click.IntRange(min=1), default=1, help="Engines built at once.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), show_default="none",
    help="Seconds after which the build of one engine is stopped.",
)  # fmt: skip
@click.option(
    "-f",
    "--force",
    is_flag=True,
    help="Build engines that are up to date as well, and those that may not fit into memory.",
)
@click.option("--dry-run", is_flag=True, help="Print profiles, memory, commands; build nothing.")
@json_option
def command(
    *,
    bundle: Path,
    target: str,
    plugin: Path | None,
    jobs: int,
    timeout_s: float | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Build TensorRT engines of a bundle, on the device.

    Reads BUNDLE, a folder that `feather-edge export` wrote. Writes one engine per graph, its
    record and its log into engines/TARGET of that folder. Each engine is built in a process of
    its own; those that are up to date are left alone.
    """
    from feather_edge.bundle import Bundle
    from feather_edge.engines.build import build_engines, describe_build
    from feather_edge.fit import require_fit
    from feather_edge.recipes import load_engine_recipe, override_engine

    opened = Bundle.open(bundle)
    recipe = override_engine(load_engine_recipe(target), **options)
    name = Path(target).stem
    if dry_run:
        text, document = describe_build(opened, recipe, target=name, plugin=plugin)
        (emit_json if as_json else click.echo)(document if as_json else text)
        return
    fits = require_fit(
        opened, target=target, engine_recipe=recipe, jobs=jobs, folder=bundle, force=force
    )
    report_fit(fits)
    with build_progress() as on_phase:
        report = build_engines(
            opened, recipe, target=name, plugin=plugin, jobs=jobs, force=force,
            timeout_s=timeout_s, on_phase=on_phase,
        )  # fmt: skip
    _print(report, as_json=as_json)


def _print(report: BuildReport, *, as_json: bool) -> None:
    for note in report.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        emit_json(report)
        return
    for engine in report.engines:
        end = f"{engine.build_s:.1f} s" if engine.is_new else "up to date"
        click.echo(f"{engine.path}: {engine.bytes / 2**20:.1f} MiB, opset {engine.opset}, {end}")
