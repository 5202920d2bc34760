"""Visual-token pruning in numpy: FEATHER and its siblings, readable beside the papers.

* ``schedule``: where the decoder is split.
* ``request``: what one request asks for.
* ``regions``: what the user keeps or drops by hand.
* ``layout``: which rows of the sequence are visual tokens, before and after pruning.
* ``criteria``: one file per method; each turns a request into a ``plan.StagePlan``.
* ``pre_criteria``, ``pre_decoder``: the same before the decoder, on vision features.
* ``selection``: top-k, the grid, and the reference of the graphs' custom op.
* ``scores``: the attention score, written out.
* ``flops``: what a prefill costs.
"""

from __future__ import annotations

from feather_edge.pruning.criteria import CRITERION_NAMES, Criterion, criterion
from feather_edge.pruning.layout import Layout, VisualSpan
from feather_edge.pruning.plan import StagePlan
from feather_edge.pruning.pre_criteria import PRE_CRITERION_NAMES
from feather_edge.pruning.regions import Region
from feather_edge.pruning.request import Pruning, Selection
from feather_edge.pruning.schedule import PruningSchedule, Segment

__all__ = [
    "CRITERION_NAMES",
    "PRE_CRITERION_NAMES",
    "Criterion",
    "Layout",
    "Pruning",
    "PruningSchedule",
    "Region",
    "Segment",
    "Selection",
    "StagePlan",
    "VisualSpan",
    "criterion",
]
