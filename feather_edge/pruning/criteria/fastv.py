"""FastV (ECCV 2024, arXiv 2403.06764): attention of the last prompt token, rotary included.

Two published functions share the name, and they rank differently:

* ``fastv-full``, FastV's own code: the softmax runs over the whole sequence, so a head that looks
  at the picture at all weighs more than one that looks at the text.
* ``fastv``, the baseline in FEATHER's code: softmax over the visual tokens alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from feather_edge.pruning.plan import StagePlan, stage_quotas

if TYPE_CHECKING:
    from feather_edge.pruning.layout import Layout
    from feather_edge.pruning.plan import ScoreDomain
    from feather_edge.pruning.request import Pruning


@dataclass(frozen=True, slots=True, kw_only=True)
class FastV:
    """Attention with rotary embedding; ``score_domain`` tells the two variants apart."""

    options: ClassVar[frozenset[str]] = frozenset()

    score_domain: ScoreDomain

    def plan(self, pruning: Pruning, stage: int, num_stages: int, layout: Layout) -> StagePlan:
        """Return the plan of a stage; see ``Criterion.plan``."""
        return StagePlan(
            quotas=stage_quotas(pruning, stage, num_stages, layout),
            score_rotation="rotary",
            score_domain=self.score_domain,
        )
