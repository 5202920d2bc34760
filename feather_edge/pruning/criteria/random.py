"""Random: tokens drawn without replacement, no look at the content. The other mandatory baseline.

Random choice beats several published methods (UniPruneBench, arXiv 2511.02650), so a method that
does not beat it here has no business on a robot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from feather_edge.pruning.plan import StagePlan, stage_quotas

if TYPE_CHECKING:
    from feather_edge.pruning.layout import Layout
    from feather_edge.pruning.request import Pruning


class Random:
    """A random subset, the same for the same seed, stage and prompt layout."""

    options: ClassVar[frozenset[str]] = frozenset({"seed"})

    def plan(self, pruning: Pruning, stage: int, num_stages: int, layout: Layout) -> StagePlan:
        """Return the plan of a stage; see ``Criterion.plan``."""
        generator = np.random.default_rng((pruning.seed, stage))
        ranks = np.zeros(layout.num_rows, np.float32)
        for span in range(len(layout.spans)):
            rows = layout.rows(span)
            ranks[rows[generator.permutation(len(rows))]] = -np.arange(len(rows))
        return StagePlan(quotas=stage_quotas(pruning, stage, num_stages, layout), ranks=ranks)
