"""Checkpoints in AWQ's and GPTQ's packing, made by hand: slow loops after the published code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["GROUP_SIZE", "declare", "dequantised", "pack_linears", "packed_tensors"]

GROUP_SIZE = 32
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]

Method = Literal["awq", "gptq", "gptq_v2"]


def declare(method: Method) -> dict[str, Any]:
    """Return the quantization_config of a method."""
    if method == "awq":
        return {
            "quant_method": "awq", "bits": 4, "group_size": GROUP_SIZE, "version": "gemm",
            "zero_point": True,
        }  # fmt: skip
    return {
        "quant_method": "gptq", "bits": 4, "group_size": GROUP_SIZE, "desc_act": False,
        "checkpoint_format": method,
    }  # fmt: skip


def quantise(
    weight: NDArray[np.float32], *, is_symmetric: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float16]]:
    """Return codes [K, N] of 0 to 15, zero points [K / G, N] and scales of a weight [N, K]."""
    groups = weight.T.astype(np.float64).reshape(-1, GROUP_SIZE, len(weight))
    if is_symmetric:
        scales = (np.abs(groups).max(axis=1) / 7).astype(np.float16)
        zeros = np.full(scales.shape, 8)
    else:
        low, high = groups.min(axis=1), groups.max(axis=1)
        scales = ((high - low) / 15).astype(np.float16)
        zeros = np.clip(np.rint(-low / scales), 1, 15).astype(np.int64)
    codes = np.clip(np.rint(groups / scales[:, None]) + zeros[:, None], 0, 15)
    # safetensors writes memory as it lies, so what is saved must lie in order.
    return codes.reshape(weight.T.shape).astype(np.int64), zeros, np.ascontiguousarray(scales)


def dequantised(
    codes: NDArray[np.int64], zeros: NDArray[np.int64], scales: NDArray[np.float16]
) -> NDArray[np.float32]:
    """Return the weight [N, K] that codes stand for, element by element."""
    weight = np.empty(codes.shape[::-1], np.float32)
    for k in range(codes.shape[0]):
        for n in range(codes.shape[1]):
            group = k // GROUP_SIZE
            weight[n, k] = np.float32(scales[group, n]) * (codes[k, n] - zeros[group, n])
    return weight


def packed_tensors(
    method: Method,
    codes: NDArray[np.int64],
    zeros: NDArray[np.int64],
    scales: NDArray[np.float16],
) -> dict[str, NDArray[Any]]:
    """Return what a method stores for a layer, without the module's name."""
    if method == "awq":
        return {
            "qweight": _pack_columns(codes, AWQ_ORDER),
            "qzeros": _pack_columns(zeros, AWQ_ORDER),
            "scales": scales,
        }
    stored = zeros - 1 if method == "gptq" else zeros
    return {
        "qweight": _pack_columns(codes.T, list(range(8))).T.copy(),
        "qzeros": _pack_columns(stored, list(range(8))),
        "scales": scales,
        "g_idx": (np.arange(len(codes)) // GROUP_SIZE).astype(np.int32),
    }


def pack_linears(
    tensors: dict[str, NDArray[Any]], method: Method, *, is_symmetric: bool
) -> dict[str, NDArray[np.float32]]:
    """Pack the decoder's dense layers in place; return the weights they stand for."""
    stands_for = {}
    linears = [n for n in tensors if ".layers." in n and "language" in n and "proj.weight" in n]
    for name in linears:
        quantised = quantise(tensors.pop(name).astype(np.float32), is_symmetric=is_symmetric)
        stands_for[name] = dequantised(*quantised)
        module = name.removesuffix("weight")
        for part, values in packed_tensors(method, *quantised).items():
            tensors[module + part] = values
    return stands_for


def _pack_columns(values: NDArray[np.int64], order: list[int]) -> NDArray[np.int32]:
    """Pack eight neighbouring columns into a word, column ``order[i]`` into its i-th four bits."""
    packed = np.zeros((values.shape[0], values.shape[1] // 8), np.uint32)
    for row in range(packed.shape[0]):
        for word in range(packed.shape[1]):
            for place in range(8):
                value = int(values[row, word * 8 + order[place]])
                packed[row, word] |= np.uint32(value << (4 * place))
    return packed.view(np.int32)
