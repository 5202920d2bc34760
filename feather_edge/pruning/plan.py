"""What one pruning stage does with the rows it is given.

A criterion answers with a ``StagePlan``: how to score, what to prefer, how many to keep. With the
user's regions, which the layout carries, it becomes inputs of the segment's graph
(``prune_priority``, ``score_cos``, ``score_sin``,
``score_mask``, ``num_kept``), so no criterion needs graphs of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from feather_edge.errors import RequestError
from feather_edge.pruning.selection import (
    ALWAYS,
    NEVER,
    chosen_priority,
    fill_priority,
    keep_count,
    top_k,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from feather_edge.pruning.layout import Layout
    from feather_edge.pruning.request import Pruning

    ValueScore = Callable[[NDArray[np.float32], Layout], NDArray[np.float32]]

ScoreRotation = Literal["none", "rotary"]
ScoreDomain = Literal["visual", "sequence"]


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage's decision, still without the scores.

    The user's regions are no criterion's business: they are in the layout, and what is said here
    holds for the rows that they leave open. Protected tokens count towards the quota of their
    image, which grows if it is too small for them and shrinks if forbidden tokens leave less.

    Attributes:
        quotas: visual tokens to keep in each span.
        preferred: [S] bool, rows that go before all others in rank, such as FEATHER's grid.
        is_union: keep the preferred rows on top of the quotas (the paper's union).
        ranks: [S], the criterion's own ranking in place of the graph's scores, higher is kept.
        score_rotation: ``none`` scores without rotary embedding (FEATHER), ``rotary`` with it.
        score_domain: softmax over the visual tokens or over the whole sequence.
        value_score: from the values [Hkv, S, Dh] of the layer before the stage, which the cache
            holds, to scores [S] in place of the graph's.
        resets_positions: the rows that leave are numbered anew, 0, 1, 2 ...
    """

    quotas: tuple[int, ...]
    preferred: NDArray[np.bool_] | None = None
    is_union: bool = False
    ranks: NDArray[np.float32] | None = None
    score_rotation: ScoreRotation = "none"
    score_domain: ScoreDomain = "visual"
    value_score: ValueScore | None = None
    resets_positions: bool = False

    @property
    def uses_scores(self) -> bool:
        """Whether scores decide anything."""
        return self.ranks is None

    @property
    def needs_host(self) -> bool:
        """Whether one top-k cannot express the plan.

        A union's size depends on the scores, a quota for each of several images needs a top-k
        per image, and scores of values come from the host; all three choose rows with ``select``.
        """
        has_several = self.uses_scores and len(self.quotas) > 1
        return self.is_union or has_several or self.value_score is not None

    @property
    def ranks_with_text(self) -> bool:
        """Whether rows of text take part, so that none of them may be missing in a prefill.

        Attention to the whole sequence spreads its softmax over them, and scores of values may be
        asked for by any of them. Numbers that start anew count them. It holds for all stages of a
        criterion alike.
        """
        is_asked = self.score_domain == "sequence" or self.value_score is not None
        return is_asked or self.resets_positions

    def quotas_within(self, layout: Layout) -> tuple[int, ...]:
        """Return the quotas after the user's regions: enough for the protected, none forbidden."""
        bounded = []
        for span, quota in enumerate(self.quotas):
            rows = layout.rows(span)
            num_open = len(rows) - int(np.count_nonzero(layout.is_forbidden[rows]))
            num_protected = int(np.count_nonzero(layout.is_protected[rows]))
            bounded.append(min(max(quota, num_protected), num_open))
        return tuple(bounded)

    def num_kept(self, layout: Layout) -> int:
        """Return the rows that leave the stage when one top-k does the work."""
        return int(np.count_nonzero(~layout.is_visual)) + sum(self.quotas_within(layout))

    def quota_change(self, layout: Layout) -> int:
        """Return how many tokens more (or fewer) than the criterion's the regions make of it."""
        return sum(self.quotas_within(layout)) - sum(self.quotas)

    def priority(self, layout: Layout) -> NDArray[np.float32]:
        """Return what is added to the scores [S] so that a top-k per image makes the choice."""
        priority = np.full(layout.num_rows, ALWAYS, np.float32)
        for span, quota in enumerate(self.quotas_within(layout)):
            rows = layout.rows(span)
            protected, forbidden = layout.is_protected[rows], layout.is_forbidden[rows]
            is_open = np.flatnonzero(~(protected | forbidden))
            values = np.where(protected, np.float32(ALWAYS), np.float32(NEVER))
            room = quota - int(np.count_nonzero(protected))
            values[is_open] = self._open_priority(rows[is_open], room)
            priority[rows] = values
        return priority

    def _open_priority(self, rows: NDArray[np.int64], room: int) -> NDArray[np.float32]:
        """Return the priority of rows that no region speaks of, ``room`` of which are kept."""
        if self.ranks is not None:
            chosen = top_k(self.ranks[rows], room)
            return chosen_priority(chosen, num_tokens=len(rows))
        if self.preferred is None or self.is_union:
            return np.zeros(len(rows), np.float32)
        preferred = np.flatnonzero(self.preferred[rows])
        return fill_priority(preferred, num_tokens=len(rows), num_kept=room)

    def select(self, scores: ArrayLike, layout: Layout) -> NDArray[np.int64]:
        """Return the ascending rows to keep, given ``scores`` [S]: the definition of a stage."""
        ranked = np.asarray(scores, np.float32) + self.priority(layout)
        kept = ~layout.is_visual
        for span, quota in enumerate(self.quotas_within(layout)):
            rows = layout.rows(span)
            kept[rows[top_k(ranked[rows], quota)]] = True
        if self.is_union and self.preferred is not None:
            kept |= self.preferred & ~layout.is_forbidden
        return np.flatnonzero(kept)


def stage_quotas(pruning: Pruning, stage: int, num_stages: int, layout: Layout) -> tuple[int, ...]:
    """Return each span's quota where a single ratio belongs to the first stage alone.

    That is how FastV and the baselines are published; later stages then keep what they get. The
    quota is per span and at least 1, so that no image of several starves.
    """
    ratios = stage_ratios(pruning, num_stages)
    return tuple(
        min(len(layout.rows(number)), keep_count(span.num_tokens, ratios[stage]))
        for number, span in enumerate(layout.spans)
    )


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
