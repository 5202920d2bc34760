from __future__ import annotations

from typing import TYPE_CHECKING

import onnxruntime
import pytest

from feather_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from feather_edge.runtime.threads import default_num_threads

if TYPE_CHECKING:
    from pathlib import Path


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def topology(num_cpus: int, *, threads_per_core: int) -> dict[str, str]:
    files = {}
    for cpu in range(num_cpus):
        folder = f"sys/devices/system/cpu/cpu{cpu}/topology"
        files[f"{folder}/physical_package_id"] = "0"
        files[f"{folder}/core_id"] = str(cpu // threads_per_core)
    return files


@pytest.mark.parametrize(
    ("threads_per_core", "allowed", "expected"),
    [(1, {0, 1, 2, 3}, 4), (2, {0, 1, 2, 3}, 2), (2, {1, 2}, 2), (2, {2, 3}, 1)],
)
def test_physical_cores_within_the_affinity(
    tmp_path: Path, threads_per_core: int, allowed: set[int], expected: int
) -> None:
    root = write(tmp_path, topology(4, threads_per_core=threads_per_core))
    assert default_num_threads(root, allowed=allowed) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
        ({"sys/fs/cgroup/cpu.max": "20000 100000"}, 1),
        ({"sys/fs/cgroup/cpu.max": "1600000 100000"}, 8),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            3,
        ),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            8,
        ),
    ],
)
def test_the_quota_of_a_control_group(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    assert default_num_threads(write(tmp_path, files), allowed=set(range(8))) == expected


def test_onnxruntime_takes_it_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []

    class Options(onnxruntime.SessionOptions):
        @property
        def intra_op_num_threads(self) -> int:
            return given[-1]

        @intra_op_num_threads.setter
        def intra_op_num_threads(self, count: int) -> None:
            given.append(count)

    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    OnnxRuntimeBackend(device="cpu")
    OnnxRuntimeBackend(device="cpu", num_threads=3)
    assert given == [default_num_threads(), 3]
