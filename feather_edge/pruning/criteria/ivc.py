"""IVC-Prune's coordinate tokens (ICLR 2026, arXiv 2602.03060).

Rotary embedding turns position m by the angles m theta_k. Where ``sum_k cos(m theta_k)`` or
``sum_k sin(m theta_k)`` is largest, the rotation is close to a pure identity or quarter turn, and
such tokens serve the model as the origin of its coordinates. Which tokens they are depends on
positions and frequencies alone, never on the picture: the best tenth by either sum. With M-RoPE,
m is the time, row or column that turns pair k.

They go before all others, as FEATHER's grid does; the rest of the quota is filled by score: with
``ivc`` FEATHER's, attention without rotary embedding, with ``ivc-value`` the paper's own, see
``ivc_value``. A quota too small for them keeps the best-scored of them. There is no grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from feather_edge.errors import RequestError
from feather_edge.pruning.plan import StagePlan, stage_quotas
from feather_edge.pruning.selection import keep_count, top_k

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feather_edge.pruning.layout import Layout
    from feather_edge.pruning.plan import ValueScore
    from feather_edge.pruning.request import Pruning

COORDINATE_SHARE = 0.1
"""Share of an image's tokens that each of the two sums marks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ivc:
    """Rotary coordinate tokens at every stage, then the best by ``value_score`` or attention."""

    options: ClassVar[frozenset[str]] = frozenset({"selection"})

    value_score: ValueScore | None

    def plan(self, pruning: Pruning, stage: int, num_stages: int, layout: Layout) -> StagePlan:
        """Return the plan of a stage; see ``Criterion.plan``."""
        return StagePlan(
            quotas=stage_quotas(pruning, stage, num_stages, layout),
            preferred=coordinate_rows(layout),
            is_union=pruning.selection == "union",
            value_score=self.value_score,
        )


def coordinate_rows(layout: Layout) -> NDArray[np.bool_]:
    """Return which rows [S] are coordinate tokens of their image.

    Raises:
        RequestError: if the layout does not know the decoder's rotary angles.
    """
    if layout.angles is None:
        raise RequestError("ivc needs the decoder's rotary angles; give them to Layout.full")
    marked = np.zeros(layout.num_rows, np.bool_)
    for number, span in enumerate(layout.spans):
        angles = layout.angles[span.positions]  # [n, Dh/2]
        count = keep_count(span.num_tokens, COORDINATE_SHARE)
        places = [top_k(turn(angles).sum(axis=1), count) for turn in (np.cos, np.sin)]
        marked[layout.rows(number)] = np.isin(layout.raster(number), np.concatenate(places))
    return marked
