"""The plugin's kernels, the very source that nvcc gets, against the numpy reference."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.plugin_kernels import COMPILER, KERNELS, PluginKernels, build_plugin_kernels

from feather_edge.pruning.selection import ALWAYS, NEVER, top_k_uniform_gather

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs g++")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs nvcc")

INF = np.inf
NAN = np.nan


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> PluginKernels:
    if COMPILER is None:
        pytest.skip("needs g++")
    return PluginKernels(library=build_plugin_kernels(tmp_path_factory.mktemp("kernels")))


def reference(
    scores: NDArray[np.float32], priority: NDArray[np.float32], num_kept: int
) -> NDArray[np.generic]:
    """Return the kept rows [B, K]."""
    with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, as on the device
        rows = zip(scores, priority, strict=True)
        return np.stack([top_k_uniform_gather(s, p, num_kept)[0] for s, p in rows])


def check(
    kernels: PluginKernels, scores: object, priority: object, num_kept: int
) -> NDArray[np.int64]:
    """Compare both thread orders with the reference, and return the kept rows."""
    s = np.ascontiguousarray(np.atleast_2d(np.asarray(scores, np.float32)))
    p = np.ascontiguousarray(np.broadcast_to(np.asarray(priority, np.float32), s.shape))
    expected = reference(s, p, num_kept)
    for downwards in (False, True):
        kept = replace(kernels, downwards=downwards).select(s, p, num_kept)
        np.testing.assert_array_equal(kept, expected)
    return kept


@pytest.mark.parametrize("threads", [1, 32, 256])
@pytest.mark.parametrize("num_rows", [1, 2, 31, 32, 33, 257, 1000, 4099])
def test_rows_equal_the_reference(kernels: PluginKernels, threads: int, num_rows: int) -> None:
    generator = np.random.default_rng(num_rows)
    scores = generator.standard_normal((2, num_rows), dtype=np.float32)
    priority = generator.choice(np.array([0, 0, ALWAYS, NEVER], np.float32), (2, num_rows))
    for num_kept in sorted({1, num_rows // 3 or 1, num_rows - 1 or 1, num_rows}):
        check(replace(kernels, threads=threads), scores, priority, num_kept)


def test_every_count_of_rows(kernels: PluginKernels) -> None:
    scores = np.random.default_rng(0).integers(-4, 4, 40).astype(np.float32)  # many ties
    for num_kept in range(1, 41):
        check(kernels, scores, 0, num_kept)


def test_the_longest_sequence(kernels: PluginKernels) -> None:
    scores = np.random.default_rng(1).integers(0, 2000, 16384).astype(np.float32)
    check(replace(kernels, threads=256), scores, 0, 5000)


def test_block_is_as_large_as_the_plugin_launches(kernels: PluginKernels) -> None:
    assert kernels.library.max_select_threads() == 256


def test_all_equal_keeps_the_first(kernels: PluginKernels) -> None:
    kept = check(kernels, np.zeros(100), 0, 7)
    np.testing.assert_array_equal(kept, [np.arange(7)])


def test_zeros_of_both_signs_tie(kernels: PluginKernels) -> None:
    kept = check(kernels, [-0.0, 0.0, -0.0, 0.0], -0.0, 2)
    np.testing.assert_array_equal(kept, [[0, 1]])


def test_nan_and_minus_infinity_are_last_and_tie(kernels: PluginKernels) -> None:
    scores = [NAN, -INF, 3.0, NAN, -3e38, INF]
    np.testing.assert_array_equal(check(kernels, scores, 0, 3), [[2, 4, 5]])
    np.testing.assert_array_equal(check(kernels, scores, 0, 4), [[0, 2, 4, 5]])
    np.testing.assert_array_equal(check(kernels, scores, 0, 5), [[0, 1, 2, 4, 5]])
    check(kernels, scores, [-INF, INF, -INF, 0, 0, -INF], 3)


def test_priority_decides_before_the_score(kernels: PluginKernels) -> None:
    scores = np.linspace(0, 1, 8)
    priority = [ALWAYS, 0, 0, ALWAYS, NEVER, NEVER, 0, NEVER]
    np.testing.assert_array_equal(check(kernels, scores, priority, 3), [[0, 3, 6]])
    np.testing.assert_array_equal(check(kernels, scores, priority, 6), [[0, 1, 2, 3, 6, 7]])


def test_every_row_of_a_batch_is_on_its_own(kernels: PluginKernels) -> None:
    kept = check(kernels, [[1, 2, 3], [3, 2, 1]], [[0, 0, 0], [0, 0, ALWAYS]], 2)
    np.testing.assert_array_equal(kept, [[1, 2], [0, 2]])


any_score = st.one_of(
    st.floats(width=32), st.sampled_from([0.0, -0.0, 1.0, NAN, INF, -INF, 1e-45, -1e-45])
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(
        st.tuples(any_score, st.sampled_from([0.0, ALWAYS, NEVER, -1.0])), min_size=1, max_size=90
    ),
    data=st.data(),
)
def test_any_floats(
    kernels: PluginKernels, rows: list[tuple[float, float]], data: st.DataObject
) -> None:
    scores, priority = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    check(kernels, scores, priority, data.draw(st.integers(1, len(rows))))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize(
    ("widths", "loads"), [((64, 16, 16), {16}), ((64, 12, 20), {8, 16}), ((5, 3, 7), {2, 4})]
)
def test_gather_moves_the_rows(
    kernels: PluginKernels, dtype: type, widths: tuple[int, int, int], loads: set[int]
) -> None:
    generator = np.random.default_rng(3)
    tensors = [generator.standard_normal((2, 50, width)).astype(dtype) for width in widths]
    kept = np.stack([np.sort(generator.permutation(50)[:19]) for _ in range(2)])
    narrowest, gathered = replace(kernels, threads=128).gather(kept, *tensors)
    assert narrowest in loads
    for tensor, rows in zip(tensors, gathered, strict=True):
        expected = np.take_along_axis(tensor, kept[..., None], axis=1)
        assert rows.tobytes() == expected.tobytes()


def test_gather_takes_tensors_at_any_address(kernels: PluginKernels) -> None:
    storage = np.arange(1 + 2 * 9 * 8, dtype=np.float16)
    tensor = storage[1:].reshape(2, 9, 8)  # 2 bytes past an aligned address
    kept = np.array([[0, 4, 8], [1, 2, 3]])
    narrowest, gathered = kernels.gather(kept, tensor, tensor, tensor)
    assert narrowest == 2
    np.testing.assert_array_equal(gathered[0], np.take_along_axis(tensor, kept[..., None], axis=1))


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("arch", [87, 110])
def test_nvcc_compiles_the_kernels(arch: int, tmp_path: Path) -> None:
    source = tmp_path / "kernels.cu"
    source.write_text('#include "kernels.cuh"\n', encoding="utf-8")
    listed = subprocess.run(
        [str(NVCC), "--list-gpu-arch"], capture_output=True, text=True, check=True
    )
    if f"compute_{arch}" not in listed.stdout.split():
        pytest.skip(f"this nvcc knows no sm_{arch}")
    done = subprocess.run(
        [str(NVCC), "-cubin", f"-arch=sm_{arch}", "-std=c++17", "-Werror", "all-warnings",
         f"-I{KERNELS}", str(source), "-o", str(tmp_path / "kernels.cubin")],
        capture_output=True, text=True, check=False, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
