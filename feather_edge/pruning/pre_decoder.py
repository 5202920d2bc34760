"""The pruning stage before the decoder: tokens that never enter it, chosen by their features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from feather_edge.pruning.plan import StagePlan
from feather_edge.pruning.pre_criteria import pre_criterion
from feather_edge.pruning.pre_criteria.tokens import ImageTokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feather_edge.pruning.layout import Layout
    from feather_edge.pruning.request import Pruning


def pre_quotas(pruning: Pruning, layout: Layout) -> tuple[int, ...]:
    """Return how many tokens each image keeps: ``max(1, round(r n))``, as DivPrune counts."""
    return tuple(max(1, round(pruning.pre_keep_ratio * s.num_tokens)) for s in layout.spans)


def pre_plan(pruning: Pruning, layout: Layout, embeds: NDArray[np.generic]) -> StagePlan:
    """Return the plan of the stage before the decoder.

    Args:
        pruning: whose ``pre_criterion`` is not ``none``.
        layout: of the unpruned prompt.
        embeds: [S, D], visual tokens spliced in. Forbidden ones are not shown to the criterion.

    Raises:
        RequestError: if there is no such criterion.
    """
    rank = pre_criterion(pruning.pre_criterion)
    quotas = pre_quotas(pruning, layout)
    ranks = np.full(layout.num_rows, -np.inf, np.float32)
    text = embeds[~layout.is_visual].astype(np.float32)
    for number, (span, quota) in enumerate(zip(layout.spans, quotas, strict=True)):
        rows = layout.rows(number)
        rows = rows[~layout.is_forbidden[rows]]
        tokens = ImageTokens(
            features=embeds[rows].astype(np.float32),
            raster=span.raster(layout.positions[rows]),
            height=span.height,
            width=span.width,
            text=text,
            seed=(pruning.seed, number),
        )
        ranks[rows] = rank(tokens, min(quota, len(rows)))
    return StagePlan(quotas=quotas, ranks=ranks)
