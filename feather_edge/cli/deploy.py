"""``feather-edge deploy``: the whole chain, from a checkpoint to a proven bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from feather_edge.cli._deploy_options import chain_options, read_deployment
from feather_edge.cli._export_options import precision_options
from feather_edge.cli._fit_report import print_fit
from feather_edge.cli._options import emit_json, json_option, pruning_options, stages_option
from feather_edge.cli._progress import deploy_watch
from feather_edge.cli._tables import print_table

if TYPE_CHECKING:
    from pathlib import Path

    from feather_edge.deploy.deployment import Deployment
    from feather_edge.deploy.report import DeployReport
    from feather_edge.deploy.state import StageName


@click.command(epilog="\b\nExample:\n  feather-edge deploy demo --target cpu -o bundle")
@click.argument("checkpoint")
@chain_options
@stages_option(
    default="from the recipe",
    help_text="Decoder layers before which visual tokens are pruned; none leaves it unsplit.",
)
@pruning_options(default="from the recipe")
@precision_options
@json_option
def command(
    *,
    from_stage: StageName | None,
    page: Path | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Run fit, export, build-engine, verify and bench.

    Reads CHECKPOINT as `export` does and writes a bundle with a record of every stage and
    report.html. The bundle takes its place when all is done: until then an earlier one stays as it
    is, and the same command goes on where it was stopped. On another machine than the target, what
    only the target can do is left to do, with the command for it, and the status is 0.
    """
    deployment = read_deployment(**options)
    if dry_run:
        _plan(deployment, from_stage, as_json=as_json)
        return
    from feather_edge.deploy.chain import deploy

    with deploy_watch() as watch:
        report = deploy(deployment, watch=watch, from_stage=from_stage, page=page)
    if as_json:
        emit_json(report)
    else:
        _print(report)


def _plan(deployment: Deployment, from_stage: StageName | None, *, as_json: bool) -> None:
    from feather_edge.deploy import dry_run

    plan = dry_run.dry_run(deployment, from_stage=from_stage)
    if as_json:
        emit_json(plan)
        return
    print_fit(plan.fit)
    title = f"{plan.checkpoint} on {plan.target} would become {plan.bundle}"
    print_table(title, dry_run.COLUMNS, dry_run.table_rows(plan))


def _print(report: DeployReport) -> None:
    from feather_edge.deploy.report import COLUMNS, table_rows

    print_table(
        f"{report.bundle}: {report.checkpoint} on {report.target}", COLUMNS, table_rows(report)
    )
    if report.next_command is not None:
        click.echo(f"to be finished on the device, with: {report.next_command}")
    click.echo(f"report: {report.page}")
