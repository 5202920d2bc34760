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

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from feather_edge.errors import RequestError
from feather_edge.pruning.plan import StagePlan, stage_quotas
from feather_edge.pruning.selection import (
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

    options: ClassVar[frozenset[str]] = frozenset({"stride", "selection"})

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
        grid = alive_grid(layout, pruning.stride)
        quotas = stage_quotas(pruning, 0, num_stages, layout)
        is_union = pruning.selection == "union"
        if len(pruning.keep_ratio) == 1 and not is_union:
            quotas = tuple(
                union_size_if_independent(len(rows), quota, int(np.count_nonzero(grid[rows])))
                for rows, quota in zip(map(layout.rows, range(len(quotas))), quotas, strict=True)
            )
        return StagePlan(quotas=quotas, preferred=grid, is_union=is_union)

    def _later_stage(
        self, pruning: Pruning, stage: int, num_stages: int, layout: Layout
    ) -> StagePlan:
        if len(pruning.keep_ratio) > 1:
            return StagePlan(quotas=stage_quotas(pruning, stage, num_stages, layout))
        square = pruning.keep_ratio[0] ** 2
        survivors = [len(layout.rows(span)) for span in range(len(layout.spans))]
        quotas = tuple(min(count, keep_count(count, square)) for count in survivors)
        return StagePlan(quotas=quotas)


def alive_grid(layout: Layout, stride: int) -> NDArray[np.bool_]:
    """Return which rows [S] lie on the uniform grid of their image."""
    grid = np.zeros(layout.num_rows, np.bool_)
    for span, image in enumerate(layout.spans):
        places = stride_grid(image.height, image.width, stride)
        grid[layout.rows(span)] = np.isin(layout.raster(span), places)
    return grid
