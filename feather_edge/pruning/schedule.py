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
    def default(cls, num_layers: int, *, num_stages: int = 2) -> PruningSchedule:
        """Return the papers' schedule at this depth: at each quarter, up to three.

        Two are FEATHER's 8 and 16 of 32 layers, three are PyramidDrop's 8, 16 and 24.

        Raises:
            RecipeError: if there are more than three stages, of which no paper says where.
        """
        if not 1 <= num_stages <= 3:
            raise RecipeError(
                f"{num_stages} pruning stages have no default places; name the layers"
            )
        stages = sorted({num_layers * i // 4 for i in range(1, num_stages + 1)} - {0})
        return cls(num_layers=num_layers, stages=tuple(stages))

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments the stages cut the decoder into, in order."""
        bounds = (0, *self.stages, self.num_layers)
        return tuple(
            Segment(first_layer=first, last_layer=end - 1)
            for first, end in itertools.pairwise(bounds)
        )
