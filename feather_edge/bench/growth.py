"""Whether a process grows: its memory over time, its threads and open files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from feather_edge.runtime.memory import rss_mib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feather_edge.runtime.backends import Backend

__all__ = ["Footprint", "fitted_growth"]


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """What a process holds at a moment.

    Attributes:
        at_s: since the start.
        rss_mib: resident host memory.
        device_mib: device memory of the backend; None where it cannot say.
        num_threads: of the process, those of libraries included.
        num_files: open files.
    """

    at_s: float
    rss_mib: float
    device_mib: float | None
    num_threads: int
    num_files: int

    @classmethod
    def now(cls, at_s: float, backend: Backend) -> Footprint:
        """Look."""
        device_bytes = backend.device_bytes()
        return cls(
            at_s=at_s,
            rss_mib=rss_mib(),
            device_mib=None if device_bytes is None else device_bytes / 2**20,
            num_threads=_count("task"),
            num_files=_count("fd"),
        )


def fitted_growth(times_s: Sequence[float], values: Sequence[float]) -> float:
    """Return by how much values rise over all of the time, along the line fitted through them.

    A line, because single values go up and down with what is being asked.
    """
    if len(times_s) < 2 or times_s[0] == times_s[-1]:
        return 0.0
    slope, _ = np.polyfit(np.asarray(times_s), np.asarray(values), 1)
    return float(slope * (times_s[-1] - times_s[0]))


def _count(entries: str) -> int:
    return sum(1 for _ in Path(f"/proc/self/{entries}").iterdir())
