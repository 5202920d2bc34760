"""PyramidDrop (CVPR 2025, arXiv 2410.17247): fewer tokens at each stage, ranked as FastV does.

Attention with rotary embedding, softmax over the whole sequence, mean over heads. One keep ratio
is the paper's lambda: after stage i a share of lambda^i of all visual tokens is left, 0.5, 0.25
and 0.125 in the paper, before layers 8, 16 and 24 of 32.

The published code numbers the rows that leave a stage anew, 0, 1, 2 ..., for all later layers,
scores of later stages included, and new tokens go on from there; keys cached before the stage keep
their rotation. That is ``pyramiddrop-reset``. ``pyramiddrop`` keeps the positions: FEATHER's table
A3 shows what shuffled ones cost, and its PyramidDrop baseline keeps them too.

Where both differ from that code: it asks with the last token of the instruction and with the layer
*after* the stage; here it is the last prompt token and the layer before, which the segment has
computed anyway.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from feather_edge.pruning.plan import StagePlan, stage_quotas

if TYPE_CHECKING:
    from feather_edge.pruning.layout import Layout
    from feather_edge.pruning.request import Pruning


@dataclass(frozen=True, slots=True, kw_only=True)
class PyramidDrop:
    """FastV's own score at every stage, with shares that fall from stage to stage."""

    options: ClassVar[frozenset[str]] = frozenset()

    resets_positions: bool

    def plan(self, pruning: Pruning, stage: int, num_stages: int, layout: Layout) -> StagePlan:
        """Return the plan of a stage; see ``Criterion.plan``."""
        if len(pruning.keep_ratio) == 1:
            shares = tuple(pruning.keep_ratio[0] ** (i + 1) for i in range(num_stages))
            pruning = replace(pruning, keep_ratio=shares)
        return StagePlan(
            quotas=stage_quotas(pruning, stage, num_stages, layout),
            score_rotation="rotary",
            score_domain="sequence",
            resets_positions=self.resets_positions,
        )
