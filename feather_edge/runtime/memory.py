"""Host memory of this process, as Linux counts it."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""What the kernel takes as "the most resident memory so far is what it is now"."""


def rss_mib() -> float:
    """Return the resident memory now, in MiB."""
    return _read("VmRSS")


def peak_rss_mib() -> float:
    """Return the most resident memory so far, in MiB.

    Not ``getrusage``: what that counts survives ``exec``, so a process would report the memory of
    the larger one that started it.
    """
    return _read("VmHWM")


def reset_peak_rss() -> None:
    """Give back what is free, and let ``peak_rss_mib`` count from now on.

    Where a container forbids the second, it goes on counting.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc's; it keeps freed memory for itself otherwise
        trim(0)
    with contextlib.suppress(OSError):
        CLEAR_REFS.write_text(RESET_PEAK, encoding="utf-8")


def _read(field: str) -> float:
    for line in STATUS.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) / 1024
    raise AssertionError(f"{STATUS} has no {field}")  # pragma: no cover - Linux always has it
