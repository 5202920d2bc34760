"""Where the decoder is split: pruning stages and the segments between them.

A stage prunes *before* a decoder layer, so layers ``0 .. before_layer - 1`` see every token that
came in. The split is fixed when the graphs are exported; what is kept is chosen per request.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from feather_edge.errors import RecipeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A maximal run of decoder layers without pruning inside: one graph, one engine."""

    first_layer: int
    last_layer: int

    @property
    def num_layers(self) -> int:
        """Number of decoder layers in the segment."""
        return self.last_layer - self.first_layer + 1

    @property
    def layers(self) -> range:
        """The decoder layers of the segment, numbered as in the whole model."""
        return range(self.first_layer, self.last_layer + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningSchedule:
    """The decoder layers before which visual tokens are pruned; empty means unsplit."""

    num_layers: int
    stages: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if list(self.stages) != sorted(set(self.stages)):
            raise RecipeError(f"stages {self.stages} must be ascending and without repeats")
        wrong = [layer for layer in self.stages if not 1 <= layer < self.num_layers]
        if wrong:
            raise RecipeError(
                f"stages {self.stages}: layer {wrong[0]} is out of range; a decoder of "
                f"{self.num_layers} layers can prune before layers 1 to {self.num_layers - 1}"
            )

    @classmethod
    def default(cls, num_layers: int) -> PruningSchedule:
        """Return FEATHER's schedule at this depth: a quarter and a half (8 and 16 of 32)."""
        stages = sorted({num_layers // 4, num_layers // 2} - {0})
        return cls(num_layers=num_layers, stages=tuple(stages))

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments the stages cut the decoder into, in order."""
        bounds = (0, *self.stages, self.num_layers)
        return tuple(
            Segment(first_layer=first, last_layer=end - 1)
            for first, end in itertools.pairwise(bounds)
        )
