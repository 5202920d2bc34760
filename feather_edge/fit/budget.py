"""What there is: memory of a target, or of this machine, and disk."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from feather_edge.platform_facts import read_platform

if TYPE_CHECKING:
    from pathlib import Path

    from feather_edge.recipes import EngineRecipe

__all__ = ["Budget", "Machine", "target_budget", "this_machine"]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """This machine; memory is None where the system does not say.

    Attributes:
        memory_mib: that a new program could have.
        disk_mib: free where results go.
    """

    memory_mib: float | None
    disk_mib: float


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a model may take, in MiB; None where it is not known.

    Attributes:
        stages: memory by stage.
        disk_mib: free disk.
        words: where the numbers come from.
        notes: what is not known.
    """

    stages: dict[str, float | None]
    disk_mib: float | None
    words: str
    notes: tuple[str, ...] = ()


def this_machine(folder: Path) -> Machine:
    """Return what is free here; ``folder``, or what there is of it, is where results go."""
    existing = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir()
    )
    return Machine(
        memory_mib=read_platform().free_memory_mib,
        disk_mib=shutil.disk_usage(existing).free / 2**20,
    )


def target_budget(recipe: EngineRecipe | None, machine: Machine) -> Budget:
    """Return what a target has, or this machine where there is none or it has no shared memory."""
    here = machine.memory_mib
    words = "this machine's memory is not known"
    if here is not None:
        words = f"{here:.0f} MiB free on this machine"
    if recipe is None:
        stages = {"export": here, "build": here, "run": here}
        return Budget(stages=stages, disk_mib=machine.disk_mib, words=words)
    if recipe.shared_memory_mib is None:
        return Budget(
            stages={"export": here, "build": here, "run": None},
            disk_mib=machine.disk_mib,
            words=words,
            notes=("the target's GPU has memory of its own, which its recipe does not know",),
        )
    available = float(recipe.shared_memory_mib - recipe.system_memory_mib)
    return Budget(
        stages=dict.fromkeys(("export", "build", "run"), available),
        disk_mib=None,
        words=(
            f"{available:.0f} MiB: {recipe.shared_memory_mib} MiB that CPU and GPU share, less "
            f"{recipe.system_memory_mib} MiB of the system's own"
        ),
    )
