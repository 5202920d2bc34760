"""Checkpoints whose dense layers are int4 already: how AWQ and GPTQ pack them.

Both write, for a layer of K inputs and N outputs in groups of G inputs, three tensors:

============  ==================  ==================  =============================================
tensor        AWQ ("gemm")        GPTQ                holds
============  ==================  ==================  =============================================
``qweight``   [K, N / 8] int32    [K / 8, N] int32    codes 0 to 15, eight in a word
``qzeros``    [K / G, N / 8]      [K / G, N / 8]      zero points, eight in a word
``scales``    [K / G, N] fp16     [K / G, N] fp16
============  ==================  ==================  =============================================

A weight is scale x (code - zero point). AWQ packs eight neighbouring outputs in the order 0, 2, 4,
6, 1, 3, 5, 7 from the low bits up, GPTQ eight neighbouring inputs (and outputs, for the zero
points) in their order. GPTQ's first format stores a zero point less one. Sources: the packing in
AutoAWQ's ``WQLinear_GEMM`` and AutoGPTQ's ``QuantLinear``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from feather_edge.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feather_edge.checkpoint.reader import TensorView

__all__ = ["PackedFormat", "PackedLinear", "check_groups", "check_sizes", "read_packed_format"]

PER_WORD = 8
CODES_OFFSET = 8
"""Codes 0 to 15 with zero point 8 are what -8 to 7 are without one."""
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight outputs lies in which four bits, from the low ones up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFormat:
    """How a checkpoint packs its dense layers.

    Attributes:
        method: who quantised it.
        group_size: inputs that share a scale; None for all inputs of a layer.
        zero_point_offset: to add to zero points as they are stored.
    """

    method: Literal["awq", "gptq"]
    group_size: int | None
    zero_point_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedLinear:
    """One dense layer of K inputs and N outputs, not read yet."""

    format: PackedFormat
    in_size: int
    out_size: int
    qweight: TensorView
    qzeros: TensorView
    scales_view: TensorView

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return self.format.group_size or self.in_size

    def codes(self) -> NDArray[np.int8]:
        """Return [K, N], -8 to 7."""
        words = self.qweight.read()
        if self.format.method == "awq":
            return _signed(_unpack_columns(words, AWQ_ORDER))
        codes = np.empty((len(words), PER_WORD, words.shape[1]), np.uint8)
        for place in range(PER_WORD):
            codes[:, place] = (words >> (4 * place)) & 0xF
        return _signed(codes.reshape(-1, words.shape[1]))

    def zeros(self) -> NDArray[np.int8]:
        """Return the zero points of ``codes()``, [K / G, N]; 0 is symmetric."""
        order = AWQ_ORDER if self.format.method == "awq" else tuple(range(PER_WORD))
        zeros = _unpack_columns(self.qzeros.read(), order)
        return _signed(zeros + np.uint8(self.format.zero_point_offset))

    def scales(self) -> NDArray[Any]:
        """Return [K / G, N], as stored."""
        return self.scales_view.read()

    def is_symmetric(self) -> bool:
        """Return whether no weight needs a zero point; reads the zero points, which are few."""
        return not self.zeros().any()


def read_packed_format(config: dict[str, Any]) -> PackedFormat | None:
    """Return how the checkpoint of a config.json packs its weights; None where it does not.

    Raises:
        UnsupportedModelError: if it is quantised in a way that cannot be taken over.
    """
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    declared: object
    declared = next(
        (p["quantization_config"] for p in parts if p.get("quantization_config")), None
    )
    if not declared:
        return None
    if not isinstance(declared, dict):
        raise UnsupportedModelError(
            f"quantization_config is {declared!r}; it must be an object with a quant_method"
        )
    method = declared.get("quant_method", "unknown")
    if method not in ("awq", "gptq"):
        raise UnsupportedModelError(
            f"quant_method is {method}; weights are taken over from awq and gptq, all else must "
            f"be the float checkpoint that it was made from"
        )
    bits = declared.get("bits", declared.get("w_bit"))
    group_size = declared.get("group_size", declared.get("q_group_size"))
    _require(method, "bits", bits, is_allowed=bits == 4, allowed="4")
    is_size = type(group_size) is int and (group_size == -1 or group_size >= 16)
    _require(method, "group_size", group_size, is_allowed=is_size, allowed="-1, or 16 and more")
    if method == "awq":
        version = str(declared.get("version", "gemm")).lower()
        _require(method, "version", version, is_allowed=version == "gemm", allowed="gemm")
    v1 = method == "gptq" and declared.get("checkpoint_format", "gptq") == "gptq"
    return PackedFormat(
        method=method,
        group_size=None if group_size == -1 else group_size,
        zero_point_offset=1 if v1 else 0,
    )


def check_groups(view: TensorView, group_size: int) -> None:
    """Refuse a GPTQ layer whose inputs are not grouped in their own order.

    Raises:
        UnsupportedModelError: if ``g_idx`` says so.
    """
    groups = view.read()
    if not np.array_equal(groups, np.arange(len(groups)) // group_size):
        raise UnsupportedModelError(
            f"tensor {view.name} reorders the inputs of groups (desc_act), which blocks of "
            f"neighbouring inputs cannot express; quantise the checkpoint with desc_act off"
        )


def check_sizes(name: str, *, in_size: int, out_size: int, group_size: int) -> None:
    """Refuse a layer that does not fall into whole words and groups.

    Raises:
        CheckpointError: naming the layer.
    """
    if in_size % PER_WORD or out_size % PER_WORD or in_size % group_size:
        raise CheckpointError(
            f"dense layer {name} has {in_size} inputs and {out_size} outputs; packed weights come "
            f"in words of {PER_WORD} and groups of {group_size}"
        )


def _require(method: str, key: str, value: object, *, is_allowed: bool, allowed: str) -> None:
    if not is_allowed:
        raise UnsupportedModelError(
            f"quantization_config ({method}) has {key} {value!r}; weights are taken over with "
            f"{key} {allowed}"
        )


def _unpack_columns(words: NDArray[np.int32], order: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return [rows, 8 columns] of [rows, columns] words; ``order`` from the low bits up."""
    codes = np.empty((*words.shape, PER_WORD), np.uint8)
    for place, column in enumerate(order):
        codes[..., column] = (words >> (4 * place)) & 0xF
    return codes.reshape(len(words), -1)


def _signed(codes: NDArray[np.uint8]) -> NDArray[np.int8]:
    signed: NDArray[np.int8] = codes.view(np.int8)
    signed -= CODES_OFFSET
    return signed
