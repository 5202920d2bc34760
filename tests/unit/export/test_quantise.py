"""Quantisation of dense weights against the slow and obvious, and what it promises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import save_file

from feather_edge.checkpoint.reader import TensorView, read_tensors
from feather_edge.export import quantise
from feather_edge.export.quantise import (
    BlockQuantised,
    ChannelQuantised,
    block_codes,
    block_scales,
    channel_codes,
    channel_scales,
    pack_int4,
    row_quantised,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FLOATS = [np.float32, np.float16, ml_dtypes.bfloat16]


def weights(out_size: int, in_size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((out_size, in_size)).astype(np.float32)


def round_trip(rows: np.ndarray, bits: int, block_size: int, **options: Any) -> np.ndarray:
    options = {"clipping": "none", "dtype": np.dtype(np.float32)} | options
    scales = block_scales(rows, bits=bits, block_size=block_size, **options)
    codes = block_codes(rows, scales, bits=bits, block_size=block_size)
    return codes * np.repeat(scales.astype(np.float32), block_size, axis=1)[:, : rows.shape[1]]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", FLOATS)
def test_blocks_are_what_a_loop_gives(bits: int, dtype: Any) -> None:
    rows, size, highest = weights(3, 48), 16, 2 ** (bits - 1) - 1
    scales = block_scales(rows, bits=bits, block_size=size, clipping="none", dtype=np.dtype(dtype))
    codes = block_codes(rows, scales, bits=bits, block_size=size)
    assert scales.shape == (3, 3)
    assert scales.dtype == dtype
    for row in range(3):
        for column in range(48):
            block = column // size
            largest = np.abs(rows[row, block * size : (block + 1) * size]).max()
            scale = np.float32(dtype(largest / np.float32(highest)))
            assert np.float32(scales[row, block]) == scale
            assert codes[row, column] == np.clip(
                np.rint(rows[row, column] / scale), -highest - 1, highest
            )


@pytest.mark.parametrize("bits", [4, 8])
def test_an_error_is_half_a_step_at_most(bits: int) -> None:
    rows = weights(8, 64)
    error = np.abs(round_trip(rows, bits, 32) - rows).reshape(8, 2, 32).max(axis=-1)
    step = np.abs(rows).reshape(8, 2, 32).max(axis=-1) / (2 ** (bits - 1) - 1)
    assert (error <= 0.501 * step).all()


def test_clipping_never_makes_the_squared_error_larger_and_helps_int4() -> None:
    rows = weights(64, 128)
    rows[:, 5] *= 6  # one weight far out in each first block
    errors = {
        clipping: ((round_trip(rows, 4, 32, clipping=clipping) - rows) ** 2)
        .reshape(64, 4, 32)
        .sum(axis=-1)
        for clipping in ("none", "mse")
    }
    assert (errors["mse"] <= errors["none"]).all()
    assert errors["mse"].sum() < 0.9 * errors["none"].sum()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("clipping", ["none", "mse"])
def test_scales_are_positive_even_of_zeros(dtype: Any, clipping: Any) -> None:
    rows = np.zeros((2, 32), np.float32)
    rows[1] = 1e-12
    scales = block_scales(rows, bits=4, block_size=16, clipping=clipping, dtype=np.dtype(dtype))
    assert (scales.astype(np.float32) > 0).all()
    assert np.isfinite(round_trip(rows, 4, 16, dtype=np.dtype(dtype))).all()
    assert (block_codes(rows[:1], scales[:1], bits=4, block_size=16) == 0).all()


@given(st.lists(st.integers(-8, 7), max_size=33))
def test_int4_is_packed_as_onnx_does(values: list[int]) -> None:
    codes = np.array(values, np.int8)
    unpacked = [n for byte in pack_int4(codes) for n in (byte & 15, byte >> 4)]
    signed = [int(n) - 16 if n > 7 else int(n) for n in unpacked]
    assert signed[: len(values)] == values
    assert len(signed) == len(values) + len(values) % 2


def views(folder: Path, *arrays: np.ndarray) -> list[TensorView]:
    save_file({str(i): array for i, array in enumerate(arrays)}, folder / "t.safetensors")
    tensors = read_tensors(folder / "t.safetensors")
    return [tensors[str(i)] for i in range(len(arrays))]


@pytest.mark.parametrize("bits", [4, 8])
def test_layers_side_by_side_in_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    """However few rows are read at a time, the outcome is that of all at once, transposed."""
    parts = weights(5, 48, 1), weights(7, 48, 2)
    joined = np.concatenate(parts)
    options: dict[str, Any] = {"clipping": "mse", "dtype": np.dtype(np.float16)}
    expected = block_scales(joined, bits=bits, block_size=16, **options)
    monkeypatch.setattr(quantise, "CHUNK_ELEMENTS", 80)
    both = BlockQuantised(views(tmp_path, *parts), bits=bits, block_size=16, **options)
    codes_first = both.codes()
    scales = both.scales()
    np.testing.assert_array_equal(scales, expected.T)
    np.testing.assert_array_equal(
        both.codes(), block_codes(joined, expected, bits=bits, block_size=16).T
    )
    np.testing.assert_array_equal(both.codes(), codes_first)


def test_one_scale_for_each_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise, "CHUNK_ELEMENTS", 80)
    parts = weights(5, 40, 1), weights(7, 40, 2)
    quantised = ChannelQuantised(views(tmp_path, *parts))
    scales, codes = quantised.scales(), quantised.codes()
    joined = np.concatenate(parts)
    sizes = np.abs(joined)
    pairs = sizes[:, ::2] + sizes[:, 1::2]
    np.testing.assert_array_equal(scales, pairs.max(axis=1) / np.float32(127))
    assert np.abs(codes * scales - joined.T).max() <= 0.501 * scales.max()


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 9)),
        elements=st.floats(-4, 4, width=32),
    )
)
def test_no_two_neighbours_can_saturate(rows: NDArray[np.float32]) -> None:
    codes = np.abs(channel_codes(rows, channel_scales(rows)).astype(int))
    padded = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    assert (padded[:, ::2] + padded[:, 1::2]).max() <= 128
    assert codes.max() <= 127


def test_smoothing_moves_size_from_inputs_to_weights(tmp_path: Path) -> None:
    array = weights(5, 40, 1)
    factors = np.geomspace(0.1, 10, 40).astype(np.float32)
    (tmp_path / "b").mkdir()
    plain = ChannelQuantised(views(tmp_path, array * factors))
    smooth = ChannelQuantised(views(tmp_path / "b", array), factors)
    np.testing.assert_array_equal(smooth.scales(), plain.scales())
    np.testing.assert_array_equal(smooth.codes(), plain.codes())


def test_each_row_has_a_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise, "CHUNK_ELEMENTS", 80)
    rows = weights(7, 40) * np.geomspace(0.01, 100, 7).astype(np.float32)[:, None]
    (view,) = views(tmp_path, rows)
    codes, scales = row_quantised(view)
    assert np.abs(codes).max(axis=1).tolist() == [127] * 7
    assert (np.abs(codes * scales[:, None] - rows) <= 0.501 * scales[:, None]).all()
