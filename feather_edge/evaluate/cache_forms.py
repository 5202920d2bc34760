"""Inputs and outputs of a segment with the caches of another form, for comparison.

What is recorded has caches that grow, [B, Hkv, P, Dh], whichever form ran; what is replayed has
those of the form that is compared. Letters as in ``feather_edge.graphs``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from feather_edge.graphs import WRITE_INDICES
from feather_edge.runtime.kv_cache import num_seen_in_place

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from feather_edge.runtime.backends.base import Graph

__all__ = ["as_grown_inputs", "as_grown_outputs", "as_taken_by"]

Arrays = dict[str, "NDArray[Any]"]


def as_grown_inputs(graph: Graph, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
    """Return the inputs of a run without the slots that were empty before it."""
    if not graph.spec.caches_in_place:
        return dict(inputs)
    num_past = int(inputs[WRITE_INDICES][0])
    num_total = num_past + _num_rows(graph, inputs)
    grown = {name: array for name, array in inputs.items() if name != WRITE_INDICES}
    for past in graph.spec.caches.values():
        grown[past] = grown[past][:, :, :num_past]
    for name in _masks(graph):
        grown[name] = grown[name][..., :num_total]
    return grown


def as_grown_outputs(
    graph: Graph, outputs: Mapping[str, NDArray[Any]], *, num_total: int
) -> Arrays:
    """Return the outputs of a run without slots past the ``num_total`` that are filled now."""
    caches = graph.spec.caches_in_place
    return {
        name: array[:, :, :num_total] if name in caches else array
        for name, array in outputs.items()
    }


def as_taken_by(graph: Graph, inputs: Mapping[str, NDArray[Any]]) -> tuple[Arrays, int]:
    """Return recorded inputs as ``graph`` takes them, and how many slots are filled after."""
    taken = dict(inputs)
    caches = graph.spec.caches.values()
    if not caches:
        return taken, 0
    num_past = inputs[next(iter(caches))].shape[2]
    num_rows = _num_rows(graph, inputs)
    num_total = num_past + num_rows
    if not graph.spec.caches_in_place:
        return taken, num_total
    capacity = graph.limits.capacity or num_total
    for past in caches:
        taken[past] = _padded(inputs[past], capacity, axis=2)
    num_seen = num_seen_in_place(num_past, num_rows, capacity)
    for name in _masks(graph):
        taken[name] = _padded(inputs[name], num_seen, axis=3)
    batch = len(inputs[graph.spec.inputs[0].name])
    return taken | {WRITE_INDICES: np.full(batch, num_past)}, num_total


def _num_rows(graph: Graph, inputs: Mapping[str, NDArray[Any]]) -> int:
    return int(inputs[graph.spec.inputs[0].name].shape[1])


def _masks(graph: Graph) -> list[str]:
    return [each.name for each in graph.spec.inputs if each.shape[-1] == "total_sequence"]


def _padded(array: NDArray[Any], size: int, *, axis: int) -> NDArray[Any]:
    """Return an array with zeros up to ``size``; one that is longer is left to be refused."""
    size = max(size, array.shape[axis])
    widths = [(0, size - array.shape[axis] if each == axis else 0) for each in range(array.ndim)]
    return np.pad(array, widths)
