"""Random: tokens drawn without replacement, no look at the content. The other mandatory baseline.

Random choice beats several published methods (UniPruneBench, arXiv 2511.02650), so a method that
does not beat it here has no business on a robot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from feather_edge.pruning.plan import StagePlan, row_priority, stage_quotas
from feather_edge.pruning.selection import chosen_priority

if TYPE_CHECKING:
    from feather_edge.pruning.layout import Layout
    from feather_edge.pruning.request import Pruning


class Random:
    """A random subset, the same for the same seed, stage and prompt layout."""

    def plan(self, pruning: Pruning, stage: int, num_stages: int, layout: Layout) -> StagePlan:
        """Return the plan of a stage; see ``Criterion.plan``."""
        generator = np.random.default_rng((pruning.seed, stage))
        quotas = stage_quotas(pruning, stage, num_stages, layout)
        priorities = []
        for span, quota in enumerate(quotas):
            num_alive = len(layout.rows(span))
            chosen = generator.permutation(num_alive)[:quota]
            priorities.append(chosen_priority(chosen, num_tokens=num_alive))
        return StagePlan(
            quotas=tuple(quotas), priority=row_priority(layout, priorities), uses_scores=False
        )
