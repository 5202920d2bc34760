"""Uniform: tokens spread evenly over the picture, no look at its content.

The mandatory baseline: in FEATHER's table 1 it beats attention with rotary embedding on
localisation at every depth. Tokens are ranked by the Bayer matrix of ordered dithering (1973), so
any number of them is spread evenly, smaller sets nest in larger ones, and a quarter of the tokens
is exactly the stride-2 grid of the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from feather_edge.pruning.plan import StagePlan, stage_quotas

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feather_edge.pruning.layout import Layout
    from feather_edge.pruning.request import Pruning


class Uniform:
    """Evenly spread tokens, as many as the ratio asks for."""

    options: ClassVar[frozenset[str]] = frozenset()

    def plan(self, pruning: Pruning, stage: int, num_stages: int, layout: Layout) -> StagePlan:
        """Return the plan of a stage; see ``Criterion.plan``."""
        ranks = np.zeros(layout.num_rows, np.float32)
        for span, image in enumerate(layout.spans):
            rank = bayer_rank(image.height, image.width)
            ranks[layout.rows(span)] = -rank[layout.raster(span)]
        return StagePlan(quotas=stage_quotas(pruning, stage, num_stages, layout), ranks=ranks)


def bayer_rank(height: int, width: int) -> NDArray[np.int64]:
    """Return the rank [height * width] of each raster position in the Bayer order."""
    bits = max(1, (max(height, width) - 1).bit_length())
    y, x = np.divmod(np.arange(height * width, dtype=np.int64), width)
    rank = np.zeros(height * width, np.int64)
    for bit in range(bits):  # the lowest coordinate bit decides first: a coarse grid before a fine
        rank = (rank << 2) | ((((x ^ y) >> bit) & 1) << 1) | ((y >> bit) & 1)
    return rank
