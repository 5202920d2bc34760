"""What a deployment came to: one document for machines, rows of a table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from feather_edge.deploy.state import PAGE_FILE, StageName, StageStatus

if TYPE_CHECKING:
    from feather_edge.deploy.ledger import Ledger

__all__ = ["COLUMNS", "DeployReport", "StageReport", "describe", "outcome", "table_rows"]

COLUMNS = ("stage", "", "seconds", "peak MiB", "outcome")
WORDS = {"done": "done", "to-do": "on the device", "not-needed": "not needed"}


class StageReport(msgspec.Struct, frozen=True, kw_only=True):
    """One stage; fields are those of ``StageRecord`` and ``Cost``.

    Attributes:
        is_new: whether it was done by this call; False where it was up to date.
    """

    name: StageName
    status: StageStatus
    is_new: bool
    summary: str
    reason: str | None
    seconds: float
    peak_rss_mib: float
    result: dict[str, Any]


class DeployReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything ``feather-edge deploy`` prints.

    Attributes:
        bundle: its folder.
        checkpoint: as it was asked for.
        target: its name.
        backend: what runs there.
        is_complete: whether nothing is left to do on the target.
        next_command: what to type there, with the bundle copied; None if it is complete.
        page: the report for a browser.
        stages: in their order.
        fit: what ``feather-edge fit --json`` prints.
        bench: what ``feather-edge bench --json`` prints; None before the target was measured.
    """

    bundle: str
    checkpoint: str
    target: str
    backend: str
    is_complete: bool
    next_command: str | None
    page: str
    stages: tuple[StageReport, ...]
    fit: dict[str, Any]
    bench: dict[str, Any] | None


def describe(ledger: Ledger) -> DeployReport:
    """Return what a ledger says."""
    deployment, costs = ledger.deployment, ledger.measured.costs
    to_do = [record.name for record in ledger.state.stages if record.status == "to-do"]
    return DeployReport(
        bundle=str(deployment.output),
        checkpoint=deployment.checkpoint,
        target=deployment.target.name,
        backend=deployment.target.backend,
        is_complete=not to_do,
        next_command=deployment.command(from_stage=to_do[0]) if to_do else None,
        page=str(deployment.output / PAGE_FILE),
        stages=tuple(
            StageReport(
                name=record.name,
                status=record.status,
                is_new=record.name in ledger.new,
                summary=record.summary,
                reason=record.reason,
                seconds=costs[record.name].seconds,
                peak_rss_mib=costs[record.name].peak_rss_mib,
                result=record.result,
            )
            for record in ledger.state.stages
        ),
        fit=ledger.measured.reports["fit"],
        bench=ledger.measured.reports.get("bench"),
    )


def outcome(stage: StageReport, report: DeployReport) -> str:
    """Return the outcome of a stage in one line, with what was measured."""
    if stage.name == "fit":
        return f"{report.fit['verdict']}; {stage.summary}"
    if stage.name != "bench" or report.bench is None:
        return stage.summary
    asked, ratio = report.bench["pruned"] or report.bench["unpruned"], report.bench["ratio"]
    told = f"first token after {asked['ttft_ms']:.3g} ms; "
    if ratio is not None:
        told += f"prefill takes {ratio['prefill']:.2f} of its unpruned time; "
    return told + stage.summary


def table_rows(report: DeployReport) -> list[tuple[str | float, ...]]:
    """Return a row for each stage."""
    return [
        (
            stage.name,
            WORDS[stage.status] if stage.is_new or stage.status != "done" else "up to date",
            stage.seconds,
            round(stage.peak_rss_mib),
            outcome(stage, report),
        )
        for stage in report.stages
    ]
