"""``deploy/state.json`` and ``deploy/measured.json``: what a deployment has done and measured.

What is done is kept apart from what is measured: the first is the same whenever a deployment is
repeated, interrupted or not; the second never is. docs/bundle-format.md describes both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import msgspec

from feather_edge import strict_json
from feather_edge.errors import BundleError
from feather_edge.staging import write_whole

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "PAGE_FILE",
    "STAGES",
    "Cost",
    "DeployState",
    "Measured",
    "Picture",
    "StageName",
    "StageRecord",
    "StageStatus",
    "VerifyResult",
    "read_measured",
    "read_state",
    "write_measured",
    "write_state",
]

StageName = Literal["fit", "export", "build-engine", "verify", "bench"]
StageStatus = Literal["done", "to-do", "not-needed"]

STAGES: tuple[StageName, ...] = get_args(StageName)
FORMAT_VERSION = 1
STATE_FILE = "deploy/state.json"
MEASURED_FILE = "deploy/measured.json"
PAGE_FILE = "report.html"
MAX_BYTES = 2**24

_Document = TypeVar("_Document", bound=msgspec.Struct)


class Picture(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A picture of a report: its file within the bundle, and what stands under it."""

    file: str
    title: str
    caption: str


class VerifyResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``verify`` leaves: its reports as ``feather-edge verify --json`` prints them.

    Attributes:
        parity: one report for each comparison.
        pictures: of each sample what its stages kept.
    """

    parity: tuple[dict[str, Any], ...]
    pictures: tuple[tuple[Picture, ...], ...]


class StageRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stage.

    Attributes:
        name: as the command that runs it alone.
        status: ``to-do`` where this machine is not the target, and the rest is left to it.
        inputs: everything that the stage depends on, by name; it is skipped while they are equal.
        summary: the outcome in one line.
        reason: why it is to do or not needed.
        result: what the stage's own report says, but for times.
    """

    name: StageName
    status: StageStatus
    inputs: dict[str, str]
    summary: str
    reason: str | None = None
    result: dict[str, Any] = {}


class DeployState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of ``deploy/state.json``.

    Attributes:
        format_version: of this file.
        checkpoint: as it was asked for.
        target: name of the target.
        stages: those that have been through, in their order.
    """

    format_version: int
    checkpoint: str
    target: str
    stages: tuple[StageRecord, ...] = ()

    def stage(self, name: StageName) -> StageRecord | None:
        """Return the record of a stage, None before it has been through."""
        return next((record for record in self.stages if record.name == name), None)

    def with_stage(self, record: StageRecord) -> DeployState:
        """Return the state after a stage; what depends on it has to be done again.

        Nothing depends on ``fit``: it refuses, or it does not.
        """
        place = STAGES.index(record.name)
        kept = [
            each
            for each in self.stages
            if STAGES.index(each.name) < place or (record.name == "fit" and each.name != "fit")
        ]
        stages = sorted([*kept, record], key=lambda each: STAGES.index(each.name))
        return msgspec.structs.replace(self, stages=tuple(stages))

    def without(self, first: StageName) -> DeployState:
        """Return the state before a stage."""
        place = STAGES.index(first)
        kept = tuple(each for each in self.stages if STAGES.index(each.name) < place)
        return msgspec.structs.replace(self, stages=kept)


class Cost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a stage took: wall time, and the most memory of one process at a time."""

    seconds: float
    peak_rss_mib: float


class Measured(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of ``deploy/measured.json``.

    Attributes:
        format_version: of this file.
        costs: of the stages.
        reports: of ``fit`` and ``bench``, what the command of that name prints with ``--json``.
    """

    format_version: int
    costs: dict[StageName, Cost] = {}
    reports: dict[StageName, dict[str, Any]] = {}


def read_state(bundle: Path) -> DeployState | None:
    """Return the state in a bundle folder, None where nothing was deployed.

    Raises:
        BundleError: if the file is damaged or of another version.
    """
    return _read(bundle / STATE_FILE, DeployState)


def read_measured(bundle: Path) -> Measured:
    """Return what was measured, nothing where nothing was; errors as of ``read_state``."""
    return _read(bundle / MEASURED_FILE, Measured) or Measured(format_version=FORMAT_VERSION)


def write_state(bundle: Path, state: DeployState) -> None:
    """Write the state into a bundle folder, all of it or nothing."""
    _write(bundle / STATE_FILE, state)


def write_measured(bundle: Path, measured: Measured) -> None:
    """Write what was measured into a bundle folder, all of it or nothing."""
    _write(bundle / MEASURED_FILE, measured)


def _read(file: Path, kind: type[_Document]) -> _Document | None:
    if not file.exists():
        return None
    remedy = f"remove {file.parent} and deploy again"
    try:
        return strict_json.read_record(
            file, kind, max_bytes=MAX_BYTES, format_version=FORMAT_VERSION
        )
    except strict_json.StrictJSONError as error:
        raise BundleError(f"{file} is no valid record: {error}; {remedy}") from error


def _write(file: Path, document: msgspec.Struct) -> None:
    write_whole(file, strict_json.dumps(document))
