"""The pruning stage before the decoder: tokens that never enter it, chosen by their features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from feather_edge.pruning.plan import StagePlan
from feather_edge.pruning.pre_criteria import MERGERS, PRE_CRITERIA, require_pre_criterion
from feather_edge.pruning.pre_criteria.pooling import pooled_size
from feather_edge.pruning.pre_criteria.tokens import ImageTokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feather_edge.pruning.layout import Layout
    from feather_edge.pruning.request import Pruning


@dataclass(frozen=True, kw_only=True)
class Entered:
    """The rows that enter the decoder.

    Attributes:
        rows: [K] of the unpruned prompt, ascending.
        embeds: [K, D]; merged tokens in the rows of their representatives.
        is_merged: whether a kept token may stand for several.
    """

    rows: NDArray[np.int64]
    embeds: NDArray[Any]
    is_merged: bool


def pre_quotas(pruning: Pruning, layout: Layout) -> tuple[int, ...]:
    """Return how many tokens each image keeps: ``max(1, round(r n))``, as DivPrune counts.

    ``pooling`` keeps one for each of its cells.
    """
    ratio = pruning.pre_keep_ratio
    if pruning.pre_criterion in MERGERS:
        sizes = (pooled_size(span.height, span.width, ratio) for span in layout.spans)
        return tuple(rows * columns for rows, columns in sizes)
    return tuple(max(1, round(ratio * span.num_tokens)) for span in layout.spans)


def prune_before_decoder(pruning: Pruning, layout: Layout, embeds: NDArray[Any]) -> Entered:
    """Choose or merge the visual tokens that enter the decoder.

    Args:
        pruning: whose ``pre_criterion`` is not ``none``.
        layout: of the unpruned prompt.
        embeds: [S, D], visual tokens spliced in. Forbidden ones are not shown to the criterion.

    Raises:
        RequestError: if there is no such criterion.
    """
    require_pre_criterion(pruning.pre_criterion)
    if pruning.pre_criterion in MERGERS:
        return _merge(pruning, layout, embeds)
    rows = pre_plan(pruning, layout, embeds).select(np.zeros(layout.num_rows), layout)
    return Entered(rows=rows, embeds=embeds[rows], is_merged=False)


def pre_plan(pruning: Pruning, layout: Layout, embeds: NDArray[Any]) -> StagePlan:
    """Return the plan of a criterion that chooses; see ``prune_before_decoder``."""
    rank = PRE_CRITERIA[pruning.pre_criterion]
    quotas = pre_quotas(pruning, layout)
    ranks = np.full(layout.num_rows, -np.inf, np.float32)
    for number, quota in enumerate(quotas):
        rows = layout.rows(number)
        rows = rows[~layout.is_forbidden[rows]]
        if not len(rows):  # a tile that lies in forbidden regions
            continue
        tokens = _image_tokens(pruning, layout, embeds, number, rows)
        ranks[rows] = rank(tokens, min(quota, len(rows)))
    return StagePlan(quotas=quotas, ranks=ranks)


def _merge(pruning: Pruning, layout: Layout, embeds: NDArray[Any]) -> Entered:
    """Merge the tokens of no region; the protected enter as they are, on top of the merged."""
    merger = MERGERS[pruning.pre_criterion]
    merged, kept = embeds.copy(), ~layout.is_visual | layout.is_protected
    for number in range(len(layout.spans)):
        rows = layout.rows(number)
        rows = rows[~(layout.is_forbidden[rows] | layout.is_protected[rows])]
        if not len(rows):
            continue
        tokens = _image_tokens(pruning, layout, embeds, number, rows)
        found = merger(tokens, pruning.pre_keep_ratio)
        places = rows[found.representatives]
        merged[places] = found.features.astype(embeds.dtype)
        kept[places] = True
    chosen = np.flatnonzero(kept)
    return Entered(rows=chosen, embeds=merged[chosen], is_merged=True)


def _image_tokens(
    pruning: Pruning,
    layout: Layout,
    embeds: NDArray[Any],
    number: int,
    rows: NDArray[np.int64],
) -> ImageTokens:
    """Return the tokens of image ``number`` in ``rows``, with the whole prompt's text."""
    span = layout.spans[number]
    return ImageTokens(
        features=embeds[rows].astype(np.float32),
        raster=span.raster(layout.positions[rows]),
        height=span.height,
        width=span.width,
        text=embeds[~layout.is_visual].astype(np.float32),
        seed=(pruning.seed, number),
    )
