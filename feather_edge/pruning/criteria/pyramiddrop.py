"""PyramidDrop (CVPR 2025, arXiv 2410.17247): fewer tokens at each stage, ranked as FastV does.

Attention with rotary embedding, softmax over the whole sequence, mean over heads. One keep ratio
is the paper's lambda: after stage i a share of lambda^i of all visual tokens is left, 0.5, 0.25
and 0.125 in the paper, before layers 8, 16 and 24 of 32.

Where the published code differs: it resets the positions of the survivors to 0, 1, 2 ... at each
stage, here they keep them (FEATHER's table A3 shows what shuffled positions cost, and its
PyramidDrop baseline keeps them too). It asks with the last token of the instruction and with the
layer *after* the stage; here it is the last prompt token and the layer before, which the segment
has computed anyway.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from feather_edge.pruning.plan import StagePlan, stage_quotas

if TYPE_CHECKING:
    from feather_edge.pruning.layout import Layout
    from feather_edge.pruning.request import Pruning


class PyramidDrop:
    """FastV's own score at every stage, with shares that fall from stage to stage."""

    options: ClassVar[frozenset[str]] = frozenset()

    def plan(self, pruning: Pruning, stage: int, num_stages: int, layout: Layout) -> StagePlan:
        """Return the plan of a stage; see ``Criterion.plan``."""
        if len(pruning.keep_ratio) == 1:
            shares = tuple(pruning.keep_ratio[0] ** (i + 1) for i in range(num_stages))
            pruning = replace(pruning, keep_ratio=shares)
        return StagePlan(
            quotas=stage_quotas(pruning, stage, num_stages, layout),
            score_rotation="rotary",
            score_domain="sequence",
        )
