"""What of a chain is done, what is due and why; written down after every stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from feather_edge.deploy.state import (
    FORMAT_VERSION,
    STAGES,
    Cost,
    DeployState,
    Measured,
    StageRecord,
    read_measured,
    read_state,
    write_measured,
    write_state,
)
from feather_edge.errors import BundleError, RequestError

if TYPE_CHECKING:
    from pathlib import Path

    from feather_edge.deploy.deployment import Deployment, Outcome, Stage, Work
    from feather_edge.deploy.state import StageName

__all__ = ["Ledger", "open_ledger"]


@dataclass(kw_only=True)
class Ledger:
    """The state of a deployment as it changes.

    Attributes:
        deployment: what is asked for.
        from_stage: the first stage that is done even if it is up to date; None for none.
        state: what is done.
        measured: what it took.
        new: stages done since it was opened.
    """

    deployment: Deployment
    from_stage: StageName | None
    state: DeployState
    measured: Measured
    new: list[StageName]

    def is_before_start(self, name: StageName) -> bool:
        """Return whether a stage is taken as it is recorded."""
        return self.from_stage is not None and _place(name) < _place(self.from_stage)

    def why_due(self, stage: Stage, inputs: dict[str, str], work: Work) -> str | None:
        """Return why a stage has to be done, None where it would only repeat itself."""
        record = self.state.stage(stage.name)
        if record is None or stage.name not in self.measured.costs:
            return "not done yet"
        for name in sorted(record.inputs.keys() | inputs.keys()):
            if record.inputs.get(name) != inputs.get(name):
                return f"{name} changed"
        if not stage.is_intact(work):
            return "what it made is damaged or gone"
        return None

    def enter(self, stage: Stage, inputs: dict[str, str], outcome: Outcome, cost: Cost) -> None:
        """Take down how a stage ended; later stages are not done any more, they depend on it."""
        self.state = self.state.with_stage(
            StageRecord(
                name=stage.name,
                status=outcome.status,
                inputs=inputs,
                summary=outcome.summary,
                reason=outcome.reason,
                result=outcome.result,
            )
        )
        costs, reports = dict(self.measured.costs), dict(self.measured.reports)
        costs[stage.name] = cost
        reports.pop(stage.name, None)
        if outcome.measured is not None:
            reports[stage.name] = outcome.measured
        done = {record.name for record in self.state.stages}
        self.measured = msgspec.structs.replace(
            self.measured,
            costs={name: each for name, each in costs.items() if name in done},
            reports={name: each for name, each in reports.items() if name in done},
        )
        self.new.append(stage.name)

    def write(self, folder: Path) -> None:
        """Write it all into a bundle folder; what is done last, so that it is never ahead."""
        write_measured(folder, self.measured)
        write_state(folder, self.state)


def open_ledger(
    deployment: Deployment, folder: Path, *, from_stage: StageName | None = None
) -> Ledger:
    """Return the ledger of a bundle folder, an empty one where nothing was deployed yet.

    Args:
        deployment: what is asked for; its output is looked at too.
        folder: where the bundle is now.
        from_stage: see ``Ledger``.

    Raises:
        BundleError: if the output is of another origin, or a record is damaged.
        RequestError: if a stage before ``from_stage`` is not recorded.
    """
    if not deployment.force:
        _check_origin(deployment)
    empty = DeployState(
        format_version=FORMAT_VERSION,
        checkpoint=deployment.checkpoint,
        target=deployment.target.name,
    )
    state = read_state(folder)
    if state is None or state.checkpoint != deployment.checkpoint:
        state = empty
    state = msgspec.structs.replace(state, target=deployment.target.name)
    if from_stage is not None:
        for name in STAGES[: _place(from_stage)]:
            if state.stage(name) is None:
                raise RequestError(
                    f"from-stage {from_stage}: {deployment.output} has no record of {name}, which "
                    f"comes before; leave --from-stage out"
                )
        state = state.without(from_stage)
    measured = read_measured(folder) if state.stages else Measured(format_version=FORMAT_VERSION)
    return Ledger(
        deployment=deployment, from_stage=from_stage, state=state, measured=measured, new=[]
    )


def _check_origin(deployment: Deployment) -> None:
    """Refuse to replace what another checkpoint or another command made."""
    output = deployment.output
    if not output.is_dir() or not any(output.iterdir()):
        return
    state = read_state(output)
    if state is None:
        raise BundleError(
            f"{output} exists and was not made by deploy; replace it with --force, or choose "
            f"another output"
        )
    if state.checkpoint != deployment.checkpoint:
        raise BundleError(
            f"{output} was deployed from {state.checkpoint}, not from {deployment.checkpoint}; "
            f"replace it with --force, or choose another output"
        )


def _place(name: StageName) -> int:
    return STAGES.index(name)
