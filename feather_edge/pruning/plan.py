"""What one pruning stage does with the rows it is given.

A criterion answers with a ``StagePlan``: how to score, what to prefer, how many to keep. The plan
becomes inputs of the segment's graph (``prune_priority``, ``score_cos``, ``score_sin``,
``score_mask``, ``num_kept``), so no criterion needs graphs of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from feather_edge.errors import RequestError
from feather_edge.pruning.selection import ALWAYS, keep_count, top_k

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from feather_edge.pruning.layout import Layout
    from feather_edge.pruning.request import Pruning

ScoreRotation = Literal["none", "rotary"]
ScoreDomain = Literal["visual", "sequence"]


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage's decision, still without the scores.

    Attributes:
        quotas: visual tokens to keep by rank in each span.
        priority: [S], added to the scores; text rows are ``ALWAYS``.
        grid: [S] bool, rows kept on top of the quotas (the paper's union), or None.
        score_rotation: ``none`` scores without rotary embedding (FEATHER), ``rotary`` with it.
        score_domain: softmax over the visual tokens or over the whole sequence.
        uses_scores: False for content-free criteria.
    """

    quotas: tuple[int, ...]
    priority: NDArray[np.float32]
    grid: NDArray[np.bool_] | None = None
    score_rotation: ScoreRotation = "none"
    score_domain: ScoreDomain = "visual"
    uses_scores: bool = True

    @property
    def needs_host(self) -> bool:
        """Whether one top-k cannot express the plan.

        A union's size depends on the scores, and a quota for each of several images needs a
        top-k per image; both read the scores back and choose rows with ``select``.
        """
        return self.grid is not None or (self.uses_scores and len(self.quotas) > 1)

    def num_kept(self, layout: Layout) -> int:
        """Return the rows that leave the stage when one top-k does the work."""
        return int(np.count_nonzero(~layout.is_visual)) + sum(self.quotas)

    def select(self, scores: ArrayLike, layout: Layout) -> NDArray[np.int64]:
        """Return the ascending rows to keep, given ``scores`` [S]: the definition of a stage."""
        ranked = np.asarray(scores, np.float32) + self.priority
        kept = ~layout.is_visual
        for span, quota in enumerate(self.quotas):
            rows = layout.rows(span)
            kept[rows[top_k(ranked[rows], quota)]] = True
        if self.grid is not None:
            kept |= self.grid
        return np.flatnonzero(kept)


def stage_quotas(pruning: Pruning, stage: int, num_stages: int, layout: Layout) -> list[int]:
    """Return each span's quota where a single ratio belongs to the first stage alone.

    That is how FastV and the baselines are published; later stages then keep what they get. The
    quota is per span and at least 1, so that no image of several starves.
    """
    ratios = stage_ratios(pruning, num_stages)
    return [
        min(len(layout.rows(number)), keep_count(span.num_tokens, ratios[stage]))
        for number, span in enumerate(layout.spans)
    ]


def stage_ratios(pruning: Pruning, num_stages: int) -> Sequence[float]:
    """Return the share of the original visual tokens left after each stage.

    Raises:
        RequestError: if several ratios were given and they are not one per stage, descending.
    """
    given = pruning.keep_ratio
    if len(given) == 1:
        return given * num_stages
    if len(given) != num_stages:
        raise RequestError(
            f"keep ratio has {len(given)} values, but this bundle has {num_stages} pruning "
            f"stage(s); give 1 value or {num_stages}"
        )
    if list(given) != sorted(given, reverse=True):
        raise RequestError(f"keep ratios {given} must not rise from one stage to the next")
    return given


def row_priority(layout: Layout, per_span: Sequence[ArrayLike]) -> NDArray[np.float32]:
    """Return priorities [S]: ``ALWAYS`` for text, ``per_span[i]`` for the rows of span i."""
    priority = np.full(layout.num_rows, ALWAYS, np.float32)
    for span, values in enumerate(per_span):
        priority[layout.rows(span)] = values
    return priority
