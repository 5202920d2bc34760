"""One segment of the decoder within one request: its graph, its cache, and what fills the slots.

Letters as in ``feather_edge.graphs``. Batch is 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from feather_edge.pruning.layout import Layout
from feather_edge.runtime.kv_cache import segment_cache
from feather_edge.runtime.masks import prompt_mask, step_mask
from feather_edge.runtime.rotary import rotary_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from feather_edge.manifest import BundleManifest
    from feather_edge.runtime.backends.base import Backend, Graph, Tensor

__all__ = ["SegmentRun"]


class SegmentRun:
    """A segment's graph with the cache of one request.

    Args:
        graph: an opened segment.
        manifest: of the bundle.
        backend: that opened the graph.
        max_new_tokens: of the answer; see ``segment_cache``.

    Attributes:
        graph: as given.
        cache: keys and values of the segment's layers.
    """

    def __init__(
        self, graph: Graph, manifest: BundleManifest, backend: Backend, *, max_new_tokens: int
    ) -> None:
        self.graph = graph
        self.cache = segment_cache(graph, backend, max_new_tokens=max_new_tokens)
        self._manifest = manifest
        self._backend = backend
        self._input_names = {tensor.name for tensor in graph.spec.inputs}
        self._dtype = graph.spec.inputs[0].dtype
        self._slots = np.empty(0, np.int64)
        """Position of what each slot of the cache holds."""

    def preload(self, slots: Mapping[str, NDArray[Any]]) -> None:
        """Start with the first slots of another request; see ``DecoderChain.preload``."""
        self.cache.preload(slots)
        self._slots = np.arange(self.cache.length)

    def run(
        self,
        hidden: Tensor,
        tables: tuple[Tensor, Tensor],
        rows: Layout | int,
        others: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Run the graph over new rows, which its cache then holds; returns its outputs.

        Args:
            hidden: [B, S, D], what enters.
            tables: cos and sin [B, S, Dh/2].
            rows: layout of the rows of a prompt, or the position of a new token.
            others: inputs that only some segments take; those of other segments are left out.

        Raises:
            BackendError: if the graph fails, or the cache has no room.
        """
        positions = rows.positions if isinstance(rows, Layout) else np.array([rows])
        self._slots = np.concatenate([self._slots, positions])
        caches = self.cache.inputs(len(positions))
        entry = "inputs_embeds" if "inputs_embeds" in self._input_names else "hidden_states"
        inputs = {
            entry: hidden,
            **self._row_inputs(tables, positions, rows),
            **caches,
            **{name: tensor for name, tensor in others.items() if name in self._input_names},
        }
        outputs = self.graph.run(inputs)
        self.cache.update(outputs, num_new=len(positions))
        return outputs

    def _row_inputs(
        self, tables: tuple[Tensor, Tensor], positions: NDArray[np.int64], rows: Layout | int
    ) -> dict[str, Tensor]:
        """Return the rotary tables and masks that the graph takes."""
        available: dict[str, Callable[[], Tensor]] = {
            "cos": lambda: tables[0],
            "sin": lambda: tables[1],
            "attention_mask": lambda: self._mask(rows, None),
        }
        local = self._manifest.local_attention
        if local is not None:
            cos, sin = rotary_tables(local.rotary or self._manifest.rotary, positions)
            available |= {
                "local_cos": lambda: self._upload_table(cos),
                "local_sin": lambda: self._upload_table(sin),
                "local_attention_mask": lambda: self._mask(rows, local.window),
            }
        return {name: make() for name, make in available.items() if name in self._input_names}

    def _mask(self, rows: Layout | int, window: int | None) -> Tensor:
        """Return the mask [1, 1, S, T] of the layers with or without a window."""
        if isinstance(rows, Layout):
            past = self._slots[: self.cache.length]
            mask = prompt_mask(rows, self._manifest.prompt_attention, past=past, window=window)
        else:
            mask = step_mask(rows, self._slots, window=window)
        num_rows, num_slots = mask.shape
        # A cache in place may show slots that hold nothing yet.
        num_empty = self.cache.num_seen(num_rows) - num_slots
        mask = np.pad(mask, ((0, 0), (0, num_empty)))
        return self._backend.upload(mask[None, None])

    def _upload_table(self, table: NDArray[np.float32]) -> Tensor:
        return self._backend.upload(np.ascontiguousarray(table[None], dtype=self._dtype))
