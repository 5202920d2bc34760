"""What a deployment would do, for ``--dry-run``: nothing is written and nothing locked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from feather_edge.deploy.deployment import Watch, Work
from feather_edge.deploy.ledger import open_ledger
from feather_edge.deploy.stages import BUILD_ENGINE, CHAIN, EXPORT, FIT, fit_report
from feather_edge.deploy.state import StageName
from feather_edge.fit import FitReport
from feather_edge.staging import Unfinished

if TYPE_CHECKING:
    from pathlib import Path

    from feather_edge.deploy.deployment import Deployment, Stage
    from feather_edge.deploy.ledger import Ledger
    from feather_edge.deploy.target import Target

__all__ = ["COLUMNS", "DeployPlan", "PlannedStage", "dry_run", "table_rows"]

COLUMNS = ("stage", "", "why")

What = Literal["runs", "up-to-date", "to-do", "not-needed"]
WORDS = {
    "runs": "would run",
    "up-to-date": "up to date",
    "to-do": "on the device",
    "not-needed": "not needed",
}


class PlannedStage(msgspec.Struct, frozen=True, kw_only=True):
    """One stage: what would become of it, and why."""

    name: StageName
    what: What
    why: str


class DeployPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment that did not happen."""

    bundle: str
    checkpoint: str
    target: str
    backend: str
    fit: FitReport
    stages: tuple[PlannedStage, ...]


def dry_run(deployment: Deployment, *, from_stage: StageName | None = None) -> DeployPlan:
    """Return what ``deploy`` would do; arguments and errors as there.

    What does not fit is no error here: the plan says so.
    """
    folder = Unfinished.of(deployment.output).folder
    ledger = open_ledger(deployment, folder, from_stage=from_stage)
    stages: list[PlannedStage] = []
    for stage in CHAIN:
        before = next((s.name for s in stages if s.what == "runs" and s.name != "fit"), None)
        what, why = _forecast(stage, ledger, folder, before)
        stages.append(PlannedStage(name=stage.name, what=what, why=why))
    return DeployPlan(
        bundle=str(deployment.output),
        checkpoint=deployment.checkpoint,
        target=deployment.target.name,
        backend=deployment.target.backend,
        fit=fit_report(deployment, force=True),
        stages=tuple(stages),
    )


def table_rows(plan: DeployPlan) -> list[tuple[str, ...]]:
    """Return a row for each stage."""
    return [(stage.name, WORDS[stage.what], stage.why) for stage in plan.stages]


def _forecast(
    stage: Stage, ledger: Ledger, folder: Path, before: StageName | None
) -> tuple[What, str]:
    """Return what becomes of a stage; ``before`` is one that it depends on and that runs."""
    if ledger.is_before_start(stage.name):
        return "up-to-date", "taken as it is recorded"
    work = Work(deployment=ledger.deployment, folder=folder, state=ledger.state, watch=Watch())
    why = f"after {before}"
    if before is None:
        found = ledger.why_due(stage, stage.inputs(work), work)
        if found is None:
            return "up-to-date", "nothing that it depends on has changed"
        why = found
    return _where(stage, ledger.deployment.target) or ("runs", why)


def _where(stage: Stage, target: Target) -> tuple[What, str] | None:
    """Return why a stage does not run here, None if it does."""
    if stage is BUILD_ENGINE and target.engines is None:
        return "not-needed", f"target {target.name} has no engines"
    if stage in (FIT, EXPORT) or (stage is BUILD_ENGINE and target.builds_here):
        return None
    return None if target.obstacle is None else ("to-do", target.obstacle)
