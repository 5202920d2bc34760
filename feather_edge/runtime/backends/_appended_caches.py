"""Segments with grown caches, run by OpenVINO with their caches in place.

OpenVINO has no operator that writes into what it is given, and a grown cache is a new output at
every step, with a new shape. What a segment appends is few rows: it is made to give those, and
they are copied into the cache after the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from feather_edge.graphs import WRITE_INDICES
from feather_edge.runtime.backends.wrapped import WrappedGraph

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feather_edge.graphs import GraphSpec
    from feather_edge.runtime.backends.base import Backend, Tensor


def give_new_rows(model: Any, spec: GraphSpec) -> bool:
    """Let a segment give what it appends to its caches, if that is what it does with them.

    Returns:
        Whether it is: ``present.*`` are then [B, Hkv, S, Dh].
    """
    appended = {}
    for result in model.get_results():
        names = result.input_value(0).get_names() & set(spec.caches)
        joined = result.input_value(0).get_node()
        if names and joined.get_type_name() == "Concat" and joined.get_input_size() == 2:
            appended[names.pop()] = (result, joined)
    if not spec.caches or set(appended) != set(spec.caches):
        return False
    for name, (result, joined) in appended.items():
        rows = joined.input_value(1)
        joined.output(0).set_names(set())
        result.input(0).replace_source_output(rows)
        rows.set_names(rows.get_names() | {name})
    model.validate_nodes_and_infer_types()
    return True


class InPlaceGraph(WrappedGraph):
    """A segment whose caches stay where they are: what it appends is written there afterwards.

    Inside, the new rows stand behind the whole memory, whose empty slots masks hide. So decode
    steps have equal shapes, and OpenVINO compiles and prepares nothing for them.

    Args:
        graph: that ``give_new_rows`` changed, opened.
        backend: that opened it.

    Attributes:
        request: what OpenVINO runs.
    """

    def __init__(self, graph: Any, backend: Backend) -> None:
        super().__init__(graph)
        self.request = graph.request
        self.spec = graph.spec.with_caches_in_place()
        self._backend = backend
        self._masks = [each.name for each in graph.spec.inputs if each.dtype == "bool"]

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Graph.run``."""
        num_past = int(inputs[WRITE_INDICES].data[0])
        caches = {past: inputs[past] for past in self.spec.caches.values()}
        if num_past == 0:  # a prompt is spared looking at the slots that it will fill
            seen = {name: self._backend.upload(t.data[:, :, :0]) for name, t in caches.items()}
        else:
            seen = caches
        num_hidden = next(iter(seen.values())).shape[2] - num_past
        masks = {name: self._mask(inputs[name], num_past, num_hidden) for name in self._masks}
        outputs = super().run({**inputs, **seen, **masks})
        for name, past in self.spec.caches.items():
            rows = outputs[name].data
            caches[past].data[:, :, num_past : num_past + rows.shape[2]] = rows
            outputs[name] = caches[past]
        return outputs

    def _mask(self, mask: Tensor, num_past: int, num_hidden: int) -> Tensor:
        """Return a mask [B, 1, S, T] with ``num_hidden`` empty slots between old and new rows."""
        num_total = num_past + mask.shape[2]
        past, new = mask.data[..., :num_past], mask.data[..., num_past:num_total]
        hidden = np.zeros((*past.shape[:3], num_hidden), np.bool_)
        return self._backend.upload(np.concatenate([past, hidden, new], axis=-1))
