"""Uniform: tokens spread evenly over the picture, no look at its content.

The mandatory baseline: in FEATHER's table 1 it beats attention with rotary embedding on
localisation at every depth. Tokens are ranked by the Bayer matrix of ordered dithering (1973), so
any number of them is spread evenly, smaller sets nest in larger ones, and a quarter of the tokens
is exactly the stride-2 grid of the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from feather_edge.pruning.plan import StagePlan, row_priority, stage_quotas
from feather_edge.pruning.selection import chosen_priority

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feather_edge.pruning.layout import Layout
    from feather_edge.pruning.request import Pruning


class Uniform:
    """Evenly spread tokens, as many as the ratio asks for."""

    def plan(self, pruning: Pruning, stage: int, num_stages: int, layout: Layout) -> StagePlan:
        """Return the plan of a stage; see ``Criterion.plan``."""
        quotas = stage_quotas(pruning, stage, num_stages, layout)
        priorities = []
        for span, quota in enumerate(quotas):
            image, alive = layout.spans[span], layout.raster(span)
            rank = bayer_rank(image.height, image.width)[alive]
            chosen = np.argsort(rank, kind="stable")[:quota]
            priorities.append(chosen_priority(chosen, num_tokens=len(alive)))
        return StagePlan(
            quotas=tuple(quotas), priority=row_priority(layout, priorities), uses_scores=False
        )


def bayer_rank(height: int, width: int) -> NDArray[np.int64]:
    """Return the rank [height * width] of each raster position in the Bayer order."""
    bits = max(1, (max(height, width) - 1).bit_length())
    y, x = np.divmod(np.arange(height * width, dtype=np.int64), width)
    rank = np.zeros(height * width, np.int64)
    for bit in range(bits):  # the lowest coordinate bit decides first: a coarse grid before a fine
        rank = (rank << 2) | ((((x ^ y) >> bit) & 1) << 1) | ((y >> bit) & 1)
    return rank
