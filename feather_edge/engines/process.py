"""Worker processes: whatever happens to one, the parent lives and says what happened."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from feather_edge.engines.diagnosis import find_problem, last_lines
from feather_edge.engines.jobs import EngineJob, EngineResult, Environment
from feather_edge.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from feather_edge.recipes import EngineBackend

__all__ = ["OnPhase", "describe_environment", "run_job"]

WORKER = [sys.executable, "-m", "feather_edge.engines._worker"]
DESCRIBE_TIMEOUT_S = 120


class OnPhase(Protocol):
    """Called while engines are built, from several threads when there are several jobs."""

    def __call__(self, graph: str, phase: str, num_done: int, num_steps: int) -> None:
        """Report that ``num_done`` of ``num_steps`` of TensorRT's ``phase`` are done."""
        ...


def describe_environment(backend: EngineBackend) -> Environment:
    """Return the installed TensorRT and the GPU, asked in a process of its own.

    Raises:
        BuildError: if TensorRT is not installed or cannot be loaded.
    """
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            [*WORKER, "--describe", backend],
            capture_output=True,
            timeout=DESCRIBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(
            f"{backend} did not load within {DESCRIBE_TIMEOUT_S} s; is the GPU in use or hung?"
        ) from error
    if done.returncode != 0:
        text = done.stderr.decode(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        raise BuildError(lines[-1] if lines else f"{backend} cannot be loaded: {_end(done)}")
    return msgspec.json.decode(done.stdout, type=Environment)


def run_job(
    job: EngineJob, *, log: Path, timeout_s: float | None, on_phase: OnPhase | None
) -> EngineResult:
    """Build one engine in a process of its own; everything it says goes into ``log``.

    Raises:
        BuildError: if it refuses, crashes, runs out of time, or says that the engine is wrong.
    """
    file = Path(job.result).with_suffix(".job")
    file.write_bytes(msgspec.json.encode(job))
    log.unlink(missing_ok=True)  # a copy of this bundle may share the file
    with _environment(job) as environment, log.open("wb") as stderr:
        process = subprocess.Popen(  # noqa: S603 - our own module
            [*WORKER, str(file), str(os.getpid())],
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
        )
        is_late = threading.Event()
        timer = threading.Timer(timeout_s or 0, _stop, (process, is_late))
        if timeout_s is not None:
            timer.start()
        try:
            _follow(process, job.graph, on_phase)
            process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                process.kill()
                process.wait()
    text = log.read_text(encoding="utf-8", errors="replace")
    if is_late.is_set():
        raise BuildError(
            f"building {job.graph} took longer than {timeout_s:g} s and was stopped; give more "
            f"--timeout or a lower --builder-optimization-level; the log ends: {last_lines(text)}"
        )
    _judge(process.returncode, text, job, log)
    return msgspec.json.decode(Path(job.result).read_bytes(), type=EngineResult)


def _judge(status: int, text: str, job: EngineJob, log: Path) -> None:
    if problem := find_problem(text):
        where = f" at node {problem.node}" if problem.node else ""
        raise BuildError(
            f"TensorRT cannot build {job.graph}{where}: {problem.message}; {problem.remedy} "
            f"({log})"
        )
    if status != 0:
        how = (
            f"was ended by {signal.Signals(-status).name}" if status < 0 else f"gave up ({status})"
        )
        hint = "; out of memory is the usual reason" if status == -signal.SIGKILL else ""
        raise BuildError(
            f"the process that built {job.graph} {how}{hint}; its log ends: {last_lines(text)} "
            f"({log})"
        )


def _stop(process: subprocess.Popen[bytes], is_late: threading.Event) -> None:
    is_late.set()
    process.kill()


def _follow(process: subprocess.Popen[bytes], graph: str, on_phase: OnPhase | None) -> None:
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    with process.stdout:
        for line in process.stdout:
            if on_phase is not None:
                phase, num_done, num_steps = msgspec.json.decode(line, type=tuple[str, int, int])
                on_phase(graph, phase, num_done, num_steps)


@contextmanager
def _environment(job: EngineJob) -> Iterator[dict[str, str]]:
    """Yield the worker's environment.

    With a plugin TensorRT-RTX opens ``libtensorrt_rtx.so``, which its wheel does not have under
    that name, and ends the process; a link gives it one.
    """
    environment = {"CUDA_MODULE_LOADING": "LAZY", **os.environ}
    package = importlib.util.find_spec("tensorrt_rtx_libs")
    if job.backend != "tensorrt-rtx" or job.plugin is None or package is None:
        yield environment
        return
    folder = Path(job.result).parent / f"lib-{os.getpid()}-{job.graph}"
    folder.mkdir(exist_ok=True)
    link = folder / "libtensorrt_rtx.so"
    try:
        for path in package.submodule_search_locations or ():
            for library in Path(path).glob("libtensorrt_rtx.so.*"):
                link.unlink(missing_ok=True)
                link.symlink_to(library)
        paths = [str(folder), *filter(None, [environment.get("LD_LIBRARY_PATH")])]
        yield environment | {"LD_LIBRARY_PATH": os.pathsep.join(paths)}
    finally:
        link.unlink(missing_ok=True)
        folder.rmdir()


def _end(done: subprocess.CompletedProcess[bytes]) -> str:
    return f"it ended with status {done.returncode}"
