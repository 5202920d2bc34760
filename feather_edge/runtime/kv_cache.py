"""The KV cache of one request: ragged, because each segment keeps fewer tokens than the last.

A slot is not a position: slot j of a pruned segment may hold the token of position 300.

A segment's cache either grows, each run of its graph giving a longer one, or is updated in place,
in memory of a fixed capacity; ``feather_edge.graphs`` has both contracts. To the chain they look
alike: tokens fill slots from 0 on, and a run sees the first ``num_seen`` of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from feather_edge.errors import BackendError
from feather_edge.graphs import WRITE_INDICES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from feather_edge.graphs import TensorSpec
    from feather_edge.runtime.backends.base import Backend, Graph, Tensor

__all__ = ["SEEN_STEP", "SegmentCache", "num_seen_in_place", "num_seen_slots", "segment_cache"]

SEEN_STEP = 256
"""Slots by which decode steps widen what they see of a cache in place.

Steps in between have equal shapes, so a CUDA graph of one serves them all; attention to 255 empty
slots at most is the price.
"""


class SegmentCache(ABC):
    """Keys and values of one segment's layers.

    Attributes:
        length: slots that are filled.
    """

    def __init__(self, graph: Graph, backend: Backend) -> None:
        self._caches = graph.spec.caches
        past = set(self._caches.values())
        self._specs = [tensor for tensor in graph.spec.inputs if tensor.name in past]
        self._graph = graph
        self._backend = backend
        self._tensors: dict[str, Tensor] = {}
        self.length = 0

    @abstractmethod
    def num_seen(self, num_new: int) -> int:
        """Return how many slots a run over ``num_new`` more rows sees: the mask's width."""

    @abstractmethod
    def inputs(self, num_new: int) -> dict[str, Tensor]:
        """Return the cache as inputs of a run over ``num_new`` more rows."""

    @abstractmethod
    def preload(self, slots: Mapping[str, NDArray[Any]]) -> None:
        """Start with slots that ``first_slots`` of another request's cache gave; they stay its."""

    def first_slots(self, num_slots: int) -> dict[str, NDArray[Any]]:
        """Return a copy of the first slots, [B, Hkv, ``num_slots``, Dh] for each input."""
        return {
            name: self._backend.download(tensor)[:, :, :num_slots].copy()
            for name, tensor in self._tensors.items()
        }

    @property
    def last_values(self) -> Tensor:
        """Values of the segment's last layer [B, Hkv, slots, Dh], the first ``length`` filled."""
        return self._tensors[self._specs[-1].name]

    def update(self, outputs: Mapping[str, Tensor], *, num_new: int) -> None:
        """Take over the cache from the graph's outputs after ``num_new`` rows."""
        self._tensors |= {past: outputs[name] for name, past in self._caches.items()}
        self.length += num_new

    def _zeros(self, spec: TensorSpec, num_slots: int) -> Tensor:
        _, num_heads, _, head_dim = spec.shape
        return self._backend.zeros((1, int(num_heads), num_slots, int(head_dim)), spec.dtype)


class _GrownCache(SegmentCache):
    def __init__(self, graph: Graph, backend: Backend) -> None:
        super().__init__(graph, backend)
        self._tensors = {spec.name: self._zeros(spec, 0) for spec in self._specs}

    def preload(self, slots: Mapping[str, NDArray[Any]]) -> None:
        self._tensors = {name: self._backend.upload(values) for name, values in slots.items()}
        self.length = _num_slots(slots)

    def num_seen(self, num_new: int) -> int:
        return self.length + num_new

    def inputs(self, num_new: int) -> dict[str, Tensor]:  # noqa: ARG002 - whatever comes
        return self._tensors


class _InPlaceCache(SegmentCache):
    """Its memory is zeroed once: what attention may not see must still be finite."""

    def __init__(self, graph: Graph, backend: Backend, *, max_new_tokens: int) -> None:
        super().__init__(graph, backend)
        self._max_new_tokens = max_new_tokens
        self._capacity = graph.limits.capacity or 0
        self._preloaded: Mapping[str, NDArray[Any]] = {}

    def preload(self, slots: Mapping[str, NDArray[Any]]) -> None:
        self._preloaded = slots  # copied once the capacity is known
        self.length = _num_slots(slots)

    def num_seen(self, num_new: int) -> int:
        return num_seen_in_place(self.length, num_new, self._capacity)

    def inputs(self, num_new: int) -> dict[str, Tensor]:
        if not self._tensors:
            num_rows = self.length + num_new
            self._capacity = self._capacity or num_rows + self._max_new_tokens
            self._tensors = {spec.name: self._begin(spec) for spec in self._specs}
        if self.length + num_new > self._capacity:
            raise BackendError(
                f"the KV cache of graph {self._graph.spec.name} has room for {self._capacity} "
                f"tokens, but {self.length + num_new} are asked for; shorten the prompt or the "
                f"answer, or raise build-engine --max-cache-capacity"
            )
        start = self._backend.upload(np.array([self.length]))
        return self._tensors | {WRITE_INDICES: start}

    def _begin(self, spec: TensorSpec) -> Tensor:
        """Return the memory of a cache, what was preloaded at its start and zeros after it."""
        if spec.name not in self._preloaded:
            return self._zeros(spec, self._capacity)
        slots = self._preloaded[spec.name]
        memory = np.zeros((*slots.shape[:2], self._capacity, slots.shape[3]), slots.dtype)
        memory[:, :, : self.length] = slots
        return self._backend.upload(memory)


def segment_cache(graph: Graph, backend: Backend, *, max_new_tokens: int) -> SegmentCache:
    """Return an empty cache for the segment that ``graph`` runs, of the kind that it takes.

    Args:
        graph: an opened segment.
        backend: that opened it.
        max_new_tokens: of the answer; room for them where the graph leaves the capacity open.
    """
    if graph.spec.caches_in_place:
        return _InPlaceCache(graph, backend, max_new_tokens=max_new_tokens)
    return _GrownCache(graph, backend)


def _num_slots(slots: Mapping[str, NDArray[Any]]) -> int:
    return int(next(iter(slots.values())).shape[2])


def num_seen_in_place(num_past: int, num_new: int, capacity: int) -> int:
    """Return how many slots of a cache in place a run over ``num_new`` more rows sees.

    Decode steps see empty ones, too; the rows of a prompt see those that are filled.
    """
    length = num_past + num_new
    return num_seen_slots(length, capacity) if num_past and num_new == 1 else length


def num_seen_slots(length: int, capacity: int) -> int:
    """Return how many slots a decode step sees of a cache in place that it fills to ``length``."""
    return min(capacity, -(-length // SEEN_STEP) * SEEN_STEP)
