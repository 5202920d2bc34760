"""Symmetric quantisation of dense weights, a few rows at a time.

A checkpoint stores a dense layer as [out, in]; graphs want [in, out]. Blocks are runs of inputs
of one output, so rows of the checkpoint can be quantised one after the other, and what is in
memory beside the result is a chunk of rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from feather_edge.checkpoint.reader import TensorView
    from feather_edge.recipes import Clipping

__all__ = [
    "BlockQuantised", "ChannelQuantised", "block_codes", "block_scales", "channel_codes",
    "channel_scales", "pack_int4", "row_quantised",
]  # fmt: skip

CHUNK_ELEMENTS = 1 << 20
CLIPPING_RATIOS = np.linspace(1.0, 0.6, 17, dtype=np.float32)
"""Of the scale that would represent the largest weight of a block."""


def block_scales(
    rows: NDArray[np.float32],
    *,
    bits: int,
    block_size: int,
    clipping: Clipping,
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    """Return the scales of blocks of inputs.

    Args:
        rows: weights [out, in].
        bits: of a code.
        block_size: inputs of a block; a divisor of ``in``.
        clipping: see ``ExportRecipe``.
        dtype: of the scales; codes are chosen for scales as they are stored.

    Returns:
        [out, blocks], all positive, since TensorRT takes no others.
    """
    blocks = _in_blocks(rows, block_size)
    highest = 2 ** (bits - 1) - 1
    largest = np.abs(blocks).max(axis=-1) / np.float32(highest)
    best = _stored(largest, dtype)
    if clipping == "none":
        return best
    best_error = _squared_error(blocks, best, bits)
    for ratio in CLIPPING_RATIOS[1:]:
        scales = _stored(largest * ratio, dtype)
        error = _squared_error(blocks, scales, bits)
        is_better = error < best_error
        best = np.where(is_better, scales, best)
        best_error = np.where(is_better, error, best_error)
    return best


def block_codes(
    rows: NDArray[np.float32], scales: NDArray[Any], *, bits: int, block_size: int
) -> NDArray[np.int8]:
    """Return the codes [out, in] of weights [out, in] under ``scales`` [out, blocks]."""
    codes = _codes(_in_blocks(rows, block_size), scales, bits)
    return codes.reshape(rows.shape)


def pack_int4(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Return codes as ONNX stores int4: two in a byte, the first one in the low bits."""
    flat = codes.reshape(-1).view(np.uint8)
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    packed: NDArray[np.uint8] = np.left_shift(flat[1::2], 4)
    packed |= flat[::2] & 0x0F
    return packed


class BlockQuantised:
    """Dense layers side by side, quantised in blocks.

    Scales are asked for first and kept until the codes are, so each weight's are found once.
    """

    def __init__(
        self,
        views: Sequence[TensorView],
        *,
        bits: int,
        block_size: int,
        clipping: Clipping,
        dtype: np.dtype[Any],
    ) -> None:
        self._views = views
        self._bits = bits
        self._block_size = block_size
        self._clipping = clipping
        self._dtype = dtype
        self._scales: NDArray[Any] | None = None

    def scales(self) -> NDArray[Any]:
        """Return [blocks, out]."""
        num_blocks = self._views[0].shape[1] // self._block_size
        scales = np.empty((num_blocks, _num_rows(self._views)), self._dtype)
        for start, rows in _chunks(self._views):
            scales[:, start : start + len(rows)] = block_scales(
                rows,
                bits=self._bits,
                block_size=self._block_size,
                clipping=self._clipping,
                dtype=self._dtype,
            ).T
        self._scales = scales
        return scales

    def codes(self) -> NDArray[np.int8]:
        """Return [in, out]."""
        scales = self.scales() if self._scales is None else self._scales
        self._scales = None
        codes = np.empty((self._views[0].shape[1], scales.shape[1]), np.int8)
        for start, rows in _chunks(self._views):
            here = slice(start, start + len(rows))
            codes[:, here] = block_codes(
                rows, scales[:, here].T, bits=self._bits, block_size=self._block_size
            ).T
        return codes


class ChannelQuantised:
    """Dense layers side by side in int8, with one scale per output.

    Args:
        views: weights [out, in].
        smoothing: [in], multiplied to the weights of each input before they are rounded.
    """

    def __init__(
        self, views: Sequence[TensorView], smoothing: NDArray[np.float32] | None = None
    ) -> None:
        self._views = views
        self._smoothing = np.float32(1) if smoothing is None else smoothing

    def scales(self) -> NDArray[np.float32]:
        """Return [out]."""
        return np.concatenate(
            [channel_scales(rows * self._smoothing) for _, rows in _chunks(self._views)]
        )

    def codes(self) -> NDArray[np.int8]:
        """Return [in, out]."""
        codes = np.empty((self._views[0].shape[1], _num_rows(self._views)), np.int8)
        for start, rows in _chunks(self._views):
            smooth = rows * self._smoothing
            codes[:, start : start + len(rows)] = channel_codes(smooth, channel_scales(smooth)).T
        return codes


def channel_scales(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the scales [out] of int8 weights [out, in] that no CPU multiplies with saturation.

    Processors without VNNI add two products of unsigned inputs and signed weights in 16 bits,
    those of the inputs 0 and 1, 2 and 3, and so on, and cut off what is beyond. Two codes whose
    magnitudes add up to 128 at most cannot get there: 255 x 128 < 2^15.
    """
    sizes = np.abs(rows)
    if sizes.shape[1] % 2:
        sizes = np.pad(sizes, ((0, 0), (0, 1)))
    pairs = (sizes[:, ::2] + sizes[:, 1::2]).max(axis=1)  # rounding adds 1 at most
    return _scales_of(np.maximum(sizes.max(axis=1), pairs))


def channel_codes(rows: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.int8]:
    """Return the codes [out, in] of weights [out, in] under ``scales`` [out]."""
    codes: NDArray[np.int8] = np.rint(rows / scales[:, None]).astype(np.int8)
    return codes


def row_quantised(view: TensorView) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 codes [rows, columns] of a matrix with a scale for each row, [rows]."""
    codes = np.empty(view.shape, np.int8)
    scales = np.empty(view.shape[0], np.float32)
    for start, rows in _chunks([view]):
        here = slice(start, start + len(rows))
        scales[here] = _scales_of(np.abs(rows).max(axis=1))
        codes[here] = channel_codes(rows, scales[here])
    return codes, scales


def _scales_of(largest: NDArray[np.float32]) -> NDArray[np.float32]:
    scales: NDArray[np.float32] = _stored(largest / np.float32(127), np.dtype(np.float32))
    return scales


def _chunks(views: Sequence[TensorView]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Walk through the rows of several tensors: where a chunk starts in all, and its values."""
    start = 0
    for view in views:
        tensor = view.read()
        step = max(1, CHUNK_ELEMENTS // view.shape[1])
        for first in range(0, len(tensor), step):
            rows = tensor[first : first + step].astype(np.float32)
            yield start + first, rows
        start += len(tensor)


def _num_rows(views: Sequence[TensorView]) -> int:
    return sum(view.shape[0] for view in views)


def _in_blocks(rows: NDArray[np.float32], block_size: int) -> NDArray[np.float32]:
    """Return [out, blocks, block_size]."""
    return rows.reshape(len(rows), -1, block_size)


def _stored(scales: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    is_half = dtype == np.float16
    tiny = np.finfo(np.float16).smallest_subnormal if is_half else np.finfo(np.float32).tiny
    return np.maximum(scales, np.float32(tiny)).astype(dtype)


def _codes(blocks: NDArray[np.float32], scales: NDArray[Any], bits: int) -> NDArray[np.int8]:
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    codes = blocks / scales.astype(np.float32)[..., None]
    np.rint(codes, out=codes)
    np.clip(codes, lowest, highest, out=codes)
    return codes.astype(np.int8)


def _squared_error(
    blocks: NDArray[np.float32], scales: NDArray[Any], bits: int
) -> NDArray[np.float32]:
    error = _codes(blocks, scales, bits) * scales.astype(np.float32)[..., None]
    error -= blocks
    squared: NDArray[np.float32] = np.einsum("obk,obk->ob", error, error)
    return squared
