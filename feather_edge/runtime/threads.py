"""How many threads one graph run gets on this machine."""

from __future__ import annotations

import math
import os
from pathlib import Path

from feather_edge.platform_facts import file_text

CPUS = "sys/devices/system/cpu/cpu{}/topology"
CGROUP_2 = "sys/fs/cgroup/cpu.max"
CGROUP_1 = ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "sys/fs/cgroup/cpu/cpu.cfs_period_us")


def default_num_threads(root: Path = Path("/"), *, allowed: set[int] | None = None) -> int:
    """Return the physical cores that this process may use, by affinity and by its control group.

    Two threads of one core share its arithmetic units, which dense layers keep busy by themselves.

    Args:
        root: of the file system, another one in tests.
        allowed: logical processors; None takes the process's own.
    """
    allowed = os.sched_getaffinity(0) if allowed is None else allowed
    cores = {_core(root, cpu) for cpu in allowed}
    quota = _quota(root)
    return len(cores) if quota is None else max(1, min(len(cores), math.ceil(quota)))


def _core(root: Path, cpu: int) -> tuple[str, str]:
    """Return the package and the core of a logical processor; itself where no file says."""
    folder = root / CPUS.format(cpu)
    package, core = (file_text(folder / name) for name in ("physical_package_id", "core_id"))
    return ("cpu", str(cpu)) if package is None or core is None else (package, core)


def _quota(root: Path) -> float | None:
    """Return the processors' worth of time that a control group grants; None without a limit."""
    text = file_text(root / CGROUP_2)
    if text is not None:
        quota, _, period = text.partition(" ")
    else:
        quota, period = (file_text(root / name) or "" for name in CGROUP_1)
    try:
        share = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max", or no file
        return None
    return share if share > 0 else None
