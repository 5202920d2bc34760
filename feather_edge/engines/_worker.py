"""Builds one engine in a process of its own: ``-m feather_edge.engines._worker JOB PARENT``.

Standard output carries one JSON line per step of progress; everything that TensorRT prints, from
wherever, goes to standard error, which the parent keeps as the log. ``--describe BACKEND`` prints
the ``Environment`` instead.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

import msgspec

from feather_edge.engines import _device, _tensorrt
from feather_edge.engines.jobs import EngineJob, EngineResult, Environment
from feather_edge.errors import BuildError
from feather_edge.runtime.memory import peak_rss_mib

__all__ = ["main"]

PR_SET_PDEATHSIG = 1


def _describe(backend: str) -> Environment:
    return Environment(
        tensorrt_version=_tensorrt.version(backend),  # type: ignore[arg-type]
        device=_device.current_device(),
    )


def _build(job: EngineJob, events: int) -> EngineResult:
    def on_phase(phase: str, num_done: int, num_steps: int) -> None:
        os.write(events, msgspec.json.encode([phase, num_done, num_steps]) + b"\n")

    build_s = _tensorrt.build_engine(job, on_phase=on_phase)
    return EngineResult(build_s=round(build_s, 3), peak_rss_mib=round(peak_rss_mib(), 1))


def _end_with(parent: int) -> None:
    """End when the parent does, however it ends: nobody would put this engine in its place."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that call
        os._exit(1)


def main(arguments: list[str]) -> int:
    """Run one job; returns the exit status."""
    # Native code writes to descriptor 1 as well; only progress may arrive there.
    events = os.dup(1)
    os.dup2(2, 1)
    try:
        if arguments[0] == "--describe":
            os.write(events, msgspec.json.encode(_describe(arguments[1])))
            return 0
        job = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=EngineJob)
        _end_with(int(arguments[1]))
        result = _build(job, events)
    except BuildError as error:
        level = "" if arguments[0] == "--describe" else "[E] "
        print(f"{level}{error}", file=sys.stderr)  # noqa: T201 - the parent reads it
        return 1
    Path(job.result).write_bytes(msgspec.json.encode(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
