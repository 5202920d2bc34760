"""What a deployment is asked to do, and what each of its stages is."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from feather_edge.bench.measure import DEFAULT_REPEAT, DEFAULT_WARMUP
from feather_edge.checkpoint import resolve_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from feather_edge.deploy.state import DeployState, StageName, StageStatus
    from feather_edge.deploy.target import Target
    from feather_edge.recipes import ExportRecipe

__all__ = ["Deployment", "Outcome", "Stage", "Watch", "Work"]


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What is asked for.

    Attributes:
        checkpoint: as ``resolve_checkpoint`` takes it.
        output: folder of the bundle.
        target: what it is for.
        recipe: of the export.
        plugin: library of the selection op for engines, or None.
        warmup: rounds of the benchmark that do not count.
        repeat: rounds that count.
        against_checkpoint: compare the graphs with the checkpoint in transformers, too.
        force: go on where it does not fit, and replace a bundle of another origin.
    """

    checkpoint: str
    output: Path
    target: Target
    recipe: ExportRecipe
    plugin: Path | None = None
    warmup: int = DEFAULT_WARMUP
    repeat: int = DEFAULT_REPEAT
    against_checkpoint: bool = False
    force: bool = False

    @cached_property
    def checkpoint_folder(self) -> Path:
        """The folder of the checkpoint; a hub id is downloaded when this is asked for."""
        return resolve_checkpoint(self.checkpoint)

    def command(self, *, from_stage: StageName) -> str:
        """Return the command line that goes on from a stage."""
        words = ["feather-edge", "deploy", self.checkpoint, "--target", self.target.spelling]
        return shlex.join([*words, "-o", str(self.output), "--from-stage", from_stage])


class Watch:
    """Whoever watches a deployment; this one looks away."""

    def on_stage(self, name: StageName, what: str) -> None:
        """Take note of a stage and of what becomes of it, before it is done or left out."""

    def on_step(self, label: str, num_done: int, num_steps: int) -> None:
        """Take note that ``num_done`` of ``num_steps`` are done, 0 where nobody knows how many."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a stage works on.

    Attributes:
        deployment: what is asked for.
        folder: of the bundle; before an export there may be none.
        state: the stages that are done.
        watch: told what happens.
    """

    deployment: Deployment
    folder: Path
    state: DeployState
    watch: Watch

    @property
    def target(self) -> Target:
        """What it is for."""
        return self.deployment.target

    def result(self, name: StageName) -> dict[str, Any]:
        """Return the recorded result of a stage, empty before it is done."""
        record = self.state.stage(name)
        return {} if record is None else record.result


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a stage ended; fields are those of ``StageRecord`` and ``Cost``.

    Attributes:
        measured: its report, if that is another one on every run.
        peak_rss_mib: of its largest process; None where that is this one.
    """

    summary: str
    status: StageStatus = "done"
    reason: str | None = None
    result: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] | None = None
    peak_rss_mib: float | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the chain.

    Attributes:
        name: of the stage.
        inputs: everything that its outcome depends on, by name; may read the bundle.
        run: does it, in the bundle's folder.
        is_intact: whether what it made is still there.
    """

    name: StageName
    inputs: Callable[[Work], dict[str, str]]
    run: Callable[[Work], Outcome]
    is_intact: Callable[[Work], bool] = lambda _: True
