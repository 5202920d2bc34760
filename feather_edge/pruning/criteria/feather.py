"""FEATHER (arXiv 2412.13180, section 4): RoPE-free attention, a uniform grid, two stages.

* Score: attention of the last prompt token to the visual tokens, *without* rotary embedding,
  softmax over the visual tokens alone, mean over heads. Early attention with rotary embedding
  prefers the bottom of the picture; without it, it does not.
* First stage: the best ``floor(r n)`` tokens together with every ``stride``-th token of both axes.
* Second stage, deeper and so better informed: the best ``floor(r^2 n1)`` of the ``n1`` survivors,
  grid tokens included, none protected.

``r`` is the keep ratio, 1 - R in the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from feather_edge.errors import RequestError
from feather_edge.pruning.plan import StagePlan, row_priority, stage_quotas
from feather_edge.pruning.selection import (
    fill_priority,
    keep_count,
    stride_grid,
    union_size_if_independent,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feather_edge.pruning.layout import Layout
    from feather_edge.pruning.request import Pruning


class Feather:
    """RoPE-free attention with a uniform grid in the first stage."""

    def plan(self, pruning: Pruning, stage: int, num_stages: int, layout: Layout) -> StagePlan:
        """Return the plan of a stage; see ``Criterion.plan``."""
        if len(pruning.keep_ratio) == 1 and num_stages > 2:
            raise RequestError(
                f"feather with one keep ratio has two stages in the paper, but this bundle has "
                f"{num_stages}; give one keep ratio per stage"
            )
        if stage > 0:
            return self._later_stage(pruning, stage, num_stages, layout)
        return self._first_stage(pruning, num_stages, layout)

    def _first_stage(self, pruning: Pruning, num_stages: int, layout: Layout) -> StagePlan:
        grids = [_alive_grid(layout, span, pruning.stride) for span in range(len(layout.spans))]
        quotas = stage_quotas(pruning, 0, num_stages, layout)
        if pruning.selection == "union":
            grid = np.zeros(layout.num_rows, np.bool_)
            for span, alive in enumerate(grids):
                grid[layout.rows(span)[alive]] = True
            zeros = [np.zeros(len(layout.rows(span))) for span in range(len(layout.spans))]
            return StagePlan(quotas=tuple(quotas), priority=row_priority(layout, zeros), grid=grid)
        if len(pruning.keep_ratio) == 1:
            quotas = [
                union_size_if_independent(span.num_tokens, quota, len(grid))
                for span, quota, grid in zip(layout.spans, quotas, grids, strict=True)
            ]
        priorities = [
            fill_priority(grid, num_tokens=len(layout.rows(span)), num_kept=quota)
            for span, (grid, quota) in enumerate(zip(grids, quotas, strict=True))
        ]
        return StagePlan(quotas=tuple(quotas), priority=row_priority(layout, priorities))

    def _later_stage(
        self, pruning: Pruning, stage: int, num_stages: int, layout: Layout
    ) -> StagePlan:
        survivors = [len(layout.rows(span)) for span in range(len(layout.spans))]
        if len(pruning.keep_ratio) == 1:
            square = pruning.keep_ratio[0] ** 2
            quotas = [keep_count(count, square) for count in survivors]
        else:
            quotas = stage_quotas(pruning, stage, num_stages, layout)
        zeros = [np.zeros(count) for count in survivors]
        return StagePlan(quotas=tuple(quotas), priority=row_priority(layout, zeros))


def _alive_grid(layout: Layout, span: int, stride: int) -> NDArray[np.int64]:
    """Return which of the span's remaining rows lie on the grid, as indices into them."""
    image = layout.spans[span]
    grid = stride_grid(image.height, image.width, stride)
    return np.flatnonzero(np.isin(layout.raster(span), grid))
