"""The inputs by which a segment's graph ranks and prunes its rows; see ``feather_edge.graphs``."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from feather_edge.pruning.scores import score_mask
from feather_edge.runtime.rotary import rotary_tables

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feather_edge.manifest import BundleManifest, Rotary
    from feather_edge.pruning.layout import Layout
    from feather_edge.pruning.plan import StagePlan
    from feather_edge.pruning.schedule import PruningSchedule
    from feather_edge.runtime.backends.base import Backend, Tensor

__all__ = ["PruneInputs"]


class PruneInputs:
    """Makes prune inputs for the segments of a bundle."""

    def __init__(
        self, manifest: BundleManifest, schedule: PruningSchedule, backend: Backend
    ) -> None:
        self._manifest = manifest
        self._schedule = schedule
        self._backend = backend

    @cached_property
    def one_row_passes(self) -> dict[str, Tensor]:
        """Of a decode step: the same for every step and segment."""
        return self.all_pass(1)

    def all_pass(self, num_rows: int) -> dict[str, Tensor]:
        """Return inputs by which every row leaves."""
        zeros = np.zeros((1, num_rows), np.float32)
        return self._uploaded(zeros, zeros, self._identity_tables(num_rows), num_kept=num_rows)

    def of_plan(
        self,
        plan: StagePlan,
        layout: Layout,
        *,
        index: int,
        coordinates: NDArray[np.int64],
        num_kept: int,
    ) -> dict[str, Tensor]:
        """Return inputs by which a segment carries a plan out.

        Args:
            plan: what to keep.
            layout: of the rows [S] that enter.
            index: of the segment.
            coordinates: [axes, S], what turns the rows.
            num_kept: rows that leave the graph.
        """
        if plan.score_rotation == "rotary":
            cos, sin = rotary_tables(self._score_rotary(index), coordinates)
            tables = (cos[None], sin[None])
        else:
            tables = self._identity_tables(layout.num_rows)
        mask = score_mask(layout, plan.score_domain)
        return self._uploaded(plan.priority(layout)[None], mask[None], tables, num_kept=num_kept)

    def _uploaded(
        self,
        priority: NDArray[np.float32],
        mask: NDArray[np.float32],
        tables: tuple[NDArray[np.float32], NDArray[np.float32]],
        *,
        num_kept: int,
    ) -> dict[str, Tensor]:
        arrays = {
            "prune_priority": priority,
            "score_mask": mask,
            "score_cos": tables[0],
            "score_sin": tables[1],
            "num_kept": np.array([num_kept]),
        }
        return {name: self._backend.upload(array) for name, array in arrays.items()}

    def _identity_tables(self, num_rows: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        shape = (1, num_rows, self._manifest.rotary.head_dim // 2)
        return np.ones(shape, np.float32), np.zeros(shape, np.float32)

    def _score_rotary(self, index: int) -> Rotary:
        """Return the rotary embedding of the layer whose score a segment gives, its last."""
        local, shape = self._manifest.local_attention, self._manifest.decoder
        is_local = self._schedule.segments[index].last_layer in shape.local_layers
        if local is None or local.rotary is None or not is_local:
            return self._manifest.rotary
        return local.rotary
