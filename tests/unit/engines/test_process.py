"""Worker processes: a crash, an abort and a hang of one become errors of the parent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.engines import job_for

from feather_edge.engines import process
from feather_edge.engines.jobs import EngineJob, EngineResult
from feather_edge.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Callable

RESULT = "Path(job['result']).write_text('{\"build_s\": 1.5, \"peak_rss_mib\": 20}')"
PRELUDE = (
    "import json, os, sys, time; from pathlib import Path; "
    "job = json.loads(Path(sys.argv[1]).read_text())\n"
)


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., EngineResult]:
    """Build with a worker whose body is the given program."""

    def run(
        program: str, *, timeout_s: float | None = 30, on_phase: object = None
    ) -> EngineResult:
        monkeypatch.setattr(process, "WORKER", [sys.executable, "-c", PRELUDE + program])
        return process.run_job(
            job_for(tmp_path / "decoder_0.onnx"),
            log=tmp_path / "decoder_0.log",
            timeout_s=timeout_s,
            on_phase=on_phase,  # type: ignore[arg-type]
        )

    return run


def test_a_worker_that_works(build: Callable[..., EngineResult]) -> None:
    phases: list[object] = []
    program = f"print('[\"Timing\", 1, 4]', flush=True); {RESULT}"
    result = build(program, on_phase=lambda *phase: phases.append(phase))
    assert result == EngineResult(build_s=1.5, peak_rss_mib=20)
    assert phases == [("decoder_0", "Timing", 1, 4)]


@pytest.mark.parametrize(
    ("program", "text"),
    [
        (
            "sys.stderr.write('terminate called'); sys.stderr.flush(); os.abort()",
            "ended by SIGABRT",
        ),
        ("os.kill(os.getpid(), 9)", "SIGKILL; out of memory is the usual reason"),
        ("os.kill(os.getpid(), 11)", "was ended by SIGSEGV"),
        ("sys.exit('no idea')", "gave up (1); its log ends: no idea"),
        (f"{RESULT}; print('[E] Mystery', file=sys.stderr)", "cannot build decoder_0: Mystery"),
        (
            f"{RESULT}; print('[W] Unused Input: lens', file=sys.stderr)",
            "cannot build decoder_0: Unused Input: lens; TensorRT drops an input",
        ),
    ],
)
def test_a_worker_that_does_not(
    build: Callable[..., EngineResult], program: str, text: str, tmp_path: Path
) -> None:
    with pytest.raises(BuildError) as error:
        build(program)
    assert text in str(error.value)
    assert str(tmp_path / "decoder_0.log") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_worker_that_hangs(build: Callable[..., EngineResult]) -> None:
    with pytest.raises(BuildError, match="took longer than 0.5 s and was stopped"):
        build("print('tuning', file=sys.stderr, flush=True); time.sleep(60)", timeout_s=0.5)


def test_a_job_survives_the_way_there(tmp_path: Path) -> None:
    import msgspec

    job = job_for(tmp_path / "g.onnx", timing_cache=str(tmp_path / "t.cache"))
    assert msgspec.json.decode(msgspec.json.encode(job), type=EngineJob) == job


def test_a_backend_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import sys; sys.exit('backend tensorrt cannot be used here: install it')"
    monkeypatch.setattr(process, "WORKER", [sys.executable, "-c", program])
    with pytest.raises(BuildError, match="^backend tensorrt cannot be used here"):
        process.describe_environment("tensorrt")


def test_a_backend_that_dies_while_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import os; os.abort()"
    monkeypatch.setattr(process, "WORKER", [sys.executable, "-c", program])
    with pytest.raises(BuildError, match="cannot be loaded"):
        process.describe_environment("tensorrt")


def test_no_driver_is_no_device() -> None:
    from feather_edge.engines._device import current_device

    assert current_device("libnosuchdriver.so.1") is None


PARENT = """
import sys
from pathlib import Path
from support.engines import job_for
from feather_edge.engines import process
child = (
    "import os, sys, time; from pathlib import Path; from feather_edge.engines._worker import "
    "_end_with; _end_with(int(sys.argv[2])); print('[\\"Timing\\", ' + str(os.getpid()) + ', 0]', "
    "flush=True); time.sleep(600)"
)
process.WORKER = [sys.executable, "-c", child]
folder = Path(sys.argv[1])
process.run_job(
    job_for(folder / "decoder_0.onnx"), log=folder / "decoder_0.log", timeout_s=None,
    on_phase=lambda graph, phase, num_done, num_steps: print(num_done, flush=True),
)
"""


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that nobody has waited for yet does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert is_alive(worker)
        parent.kill()
    deadline_s = time.monotonic() + 10
    while is_alive(worker) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not is_alive(worker)


def test_a_worker_without_its_parent_does_not_begin(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from feather_edge.engines._worker import _end_with; _end_with(1)"],
        check=False,
    )
    assert done.returncode == 1
