"""The KV cache of one request: ragged, because each segment keeps fewer tokens than the last.

A slot is not a position: slot j of a pruned segment may hold the token of position 300.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from feather_edge.graphs import cache_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feather_edge.graphs import DecoderShape, DType
    from feather_edge.pruning.schedule import Segment
    from feather_edge.runtime.backends.base import Backend, Tensor


class SegmentCache:
    """Keys and values of one segment's layers, [B, Hkv, length, Dh] each."""

    def __init__(
        self, segment: Segment, shape: DecoderShape, *, backend: Backend, dtype: DType
    ) -> None:
        empty = np.zeros((1, shape.num_key_value_heads, 0, shape.head_dim), dtype)
        self._past = cache_names("past_key_values", segment.layers)
        self._present = cache_names("present", segment.layers)
        self._tensors: dict[str, Tensor] = dict.fromkeys(self._past, backend.upload(empty))
        self.length = 0

    def inputs(self) -> dict[str, Tensor]:
        """Return the cache as inputs of the segment's graph."""
        return self._tensors

    @property
    def last_values(self) -> Tensor:
        """Values [B, Hkv, length, Dh] of the segment's last layer."""
        return self._tensors[self._past[-1]]

    def update(self, outputs: Mapping[str, Tensor], *, num_new: int) -> None:
        """Take over the grown cache from the graph's outputs after ``num_new`` positions."""
        for past, present in zip(self._past, self._present, strict=True):
            self._tensors[past] = outputs[present]
        self.length += num_new
