"""FEATHER's uniform grid, held against what a request kept: the definition, and nothing of ours.

Every ``stride``-th token of both axes of a raster stays in the first stage (arXiv 2412.13180,
section 4.1). What ran is not asked how it laid its grid: only where kept tokens lie counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from feather_edge.recipes import ExportRecipe
    from feather_edge.runtime.result import Result

__all__ = ["grid_failure"]


def grid_failure(result: Result, recipe: ExportRecipe) -> str | None:
    """Return what of the recipe's grid is missing among the kept tokens; None if nothing is.

    Where fewer tokens stay than the grid has, all of them must lie on it.
    """
    if recipe.prune != "feather" or not recipe.stride or recipe.pre_prune != "none":
        return None
    if result.reason is not None or not result.stages:
        return None
    stage, first = result.stages[0], 0
    kept = set(stage.kept_indices.tolist())
    for raster in result.rasters:
        size = (raster.height, raster.width)
        here = {index - first for index in kept if first <= index < first + size[0] * size[1]}
        first += size[0] * size[1]
        grid = _grid(size, recipe.stride)
        if grid <= here or here <= grid:
            continue
        strides = (s for s in range(1, max(size)) if _grid(size, s) <= here)
        seen = next(strides, None)
        laid = "with no grid" if seen is None else f"with a grid of stride {seen}"
        return (
            f"stride is {recipe.stride} in the recipe, but the stage before layer "
            f"{stage.before_layer} keeps {len(here)} tokens of image {raster.image} {laid}: "
            f"{len(grid - here)} of {len(grid)} tokens of the grid are gone"
        )
    return None


def _grid(size: tuple[int, int], stride: int) -> set[int]:
    height, width = size
    return {r * width + c for r in range(0, height, stride) for c in range(0, width, stride)}
