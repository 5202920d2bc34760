"""What a build would do: profiles, memory and commands, for ``--dry-run``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from feather_edge.engine_record import OptimizationProfile, ShapeRange
from feather_edge.engines.commands import polygraphy_command
from feather_edge.engines.memory import MemoryEstimate

if TYPE_CHECKING:
    from feather_edge.engines.jobs import Environment
    from feather_edge.engines.plan import EnginePlan
    from feather_edge.recipes import EngineRecipe

__all__ = ["DryRun", "PlannedEngine", "as_text", "describe"]


class PlannedEngine(msgspec.Struct, frozen=True, kw_only=True):
    """One engine that a build would make."""

    graph: str
    opset: int
    path: str
    profiles: tuple[OptimizationProfile, ...]
    memory: MemoryEstimate
    command: str


class DryRun(msgspec.Struct, frozen=True, kw_only=True):
    """A build that did not happen.

    Attributes:
        target: name of the recipe.
        backend: which TensorRT.
        tensorrt_version: that it is planned for.
        notes: what is allowed but may not be what was meant.
        peak_build_mib: of the largest build, one at a time.
        resident_mib: of engines and full caches of all graphs.
        shared_memory_mib: of the target, None where the GPU has its own.
        engines: in the order in which they are built.
    """

    target: str
    backend: str
    tensorrt_version: str
    notes: tuple[str, ...]
    peak_build_mib: float
    resident_mib: float
    shared_memory_mib: int | None
    engines: tuple[PlannedEngine, ...]


def describe(
    plans: tuple[EnginePlan, ...],
    recipe: EngineRecipe,
    environment: Environment,
    *,
    target: str,
    notes: tuple[str, ...],
) -> DryRun:
    """Return a document of the plans."""
    peak = max(plan.memory.build_mib for plan in plans)
    resident = sum(p.memory.engine_mib + p.memory.cache_mib + p.memory.io_mib for p in plans)
    available = recipe.shared_memory_mib
    if available is not None and max(peak, resident) > available:
        notes += (
            (
                f"an estimate of {max(peak, resident):.0f} MiB is more than the {available} MiB "
                f"of the target; lower the limits, or split the decoder into more segments"
            ),
        )
    return DryRun(
        target=target,
        backend=recipe.backend,
        tensorrt_version=environment.tensorrt_version,
        notes=notes,
        peak_build_mib=peak,
        resident_mib=round(resident, 1),
        shared_memory_mib=available,
        engines=tuple(
            PlannedEngine(
                graph=plan.job.graph,
                opset=plan.record.opset,
                path=str(plan.engine),
                profiles=plan.job.profiles,
                memory=plan.memory,
                command=polygraphy_command(plan.job, output=str(plan.engine)),
            )
            for plan in plans
        ),
    )


def as_text(dry_run: DryRun, *, source: str) -> str:
    """Return a dry run for people; ``source`` says where the version comes from."""
    lines = [
        f"target {dry_run.target}: {dry_run.backend} {dry_run.tensorrt_version}, {source}",
        (
            f"estimated: building peaks at {dry_run.peak_build_mib:.0f} MiB beside the workspace, "
            f"one engine at a time; engines and full caches are {dry_run.resident_mib:.0f} MiB"
        ),
        *(f"note: {note}" for note in dry_run.notes),
    ]
    for engine in dry_run.engines:
        memory = engine.memory
        lines += [
            "",
            f"{engine.graph} (opset {engine.opset}) -> {engine.path}",
            (
                f"  MiB: build {memory.build_mib:.0f}, weights {memory.engine_mib:.0f}, "
                f"KV cache {memory.cache_mib:.0f}, other inputs and outputs {memory.io_mib:.0f}"
            ),
        ]
        for profile in engine.profiles:
            lines.append(f"  profile {profile.name}")
            lines += [f"    {name}: {_span(span)}" for name, span in profile.inputs.items()]
        lines.append(f"  {engine.command}")
    return "\n".join(lines)


def _span(span: ShapeRange) -> str:
    shapes = [f"[{', '.join(map(str, shape))}]" for shape in (span.min, span.opt, span.max)]
    return " ".join(
        f"{end} {shape}" for end, shape in zip(("min", "opt", "max"), shapes, strict=True)
    )
