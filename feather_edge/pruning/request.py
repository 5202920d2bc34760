"""What a request may ask of the pruning stages: criterion, ratio, grid, selection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from feather_edge.errors import RequestError

if TYPE_CHECKING:
    from feather_edge.pruning.layout import Layout
    from feather_edge.recipes import ExportRecipe

Selection = Literal["fill", "union"]

MIN_VISUAL_TOKENS = 16
"""Fewer are never pruned: there is nothing to gain, and every token matters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """Pruning options of one request.

    Attributes:
        criterion: ``feather``, ``fastv`` (softmax over visual tokens), ``fastv-full`` (softmax
            over the whole sequence, as FastV's own code), ``pyramiddrop``, ``pyramiddrop-reset``,
            ``ivc``, ``ivc-value``, ``uniform``, ``random`` or ``none``.
        keep_ratio: one value is the method's own parameter (FEATHER: 1 - R of the paper, so its
            second stage keeps the square; PyramidDrop: lambda, kept again at each stage; the
            others: the share that the first stage keeps). One value per stage gives the share of
            the original visual tokens left after each stage.
        stride: step of FEATHER's uniform grid; 0 for none.
        selection: ``fill`` keeps a constant number of tokens, ``union`` is the paper's data
            dependent union of the best and the grid (``ivc``: the coordinate tokens).
        seed: of ``random``.
        pre_criterion: what prunes before the decoder, on the vision features: ``uniform``,
            ``random``, ``divprune``, ``dart``, ``cdpruner``, ``pooling`` or ``none``.
        pre_keep_ratio: share of the visual tokens that it lets into the decoder.
    """

    criterion: str = "feather"
    keep_ratio: tuple[float, ...] = (0.3,)
    stride: int = 3
    selection: Selection = "fill"
    seed: int = 0
    pre_criterion: str = "none"
    pre_keep_ratio: float = 0.5

    @classmethod
    def from_recipe(cls, recipe: ExportRecipe) -> Pruning:
        """Return what a bundle's recipe asks of a request that asks for nothing else."""
        return cls(
            criterion=recipe.prune,
            keep_ratio=recipe.keep_ratio,
            stride=recipe.stride,
            selection=recipe.selection,
            seed=recipe.seed,
            pre_criterion=recipe.pre_prune,
            pre_keep_ratio=recipe.pre_keep_ratio,
        )

    def __post_init__(self) -> None:
        if not self.keep_ratio:
            raise RequestError("keep ratio is empty; give one value, or one per pruning stage")
        for ratio in (*self.keep_ratio, self.pre_keep_ratio):
            if not 0 < ratio <= 1:
                raise RequestError(f"keep ratio {ratio} is out of range; it must be in (0, 1]")
        if self.selection not in get_args(Selection):
            raise RequestError(f"selection {self.selection!r} is unknown; choose fill or union")
        if self.stride < 0:
            raise RequestError(f"stride {self.stride} must be 0 (no grid) or more")
        if self.seed < 0:
            raise RequestError(f"seed {self.seed} must be 0 or more")


def unpruned_reason(pruning: Pruning, layout: Layout, num_stages: int) -> str | None:
    """Return why a request prunes nothing, or None when it does prune."""
    if pruning.criterion == pruning.pre_criterion == "none":
        return "pruning is off"
    if num_stages == 0 and pruning.pre_criterion == "none":
        return "the bundle was exported without pruning stages"
    if layout.num_visual_tokens == 0:
        return "the prompt has no image"
    if layout.num_visual_tokens < MIN_VISUAL_TOKENS:
        return (
            f"the prompt has only {layout.num_visual_tokens} visual tokens; "
            f"fewer than {MIN_VISUAL_TOKENS} are not pruned"
        )
    return None
