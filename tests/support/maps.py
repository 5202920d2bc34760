"""Token maps of a picture that is one raster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from feather_edge.images import Raster, ViewGeometry
from feather_edge.viz import token_maps

if TYPE_CHECKING:
    from feather_edge.viz import TokenMap

__all__ = ["map_of"]


def map_of(grid: tuple[int, int], size: int) -> TokenMap:
    """Return the map of ``grid`` rows and columns of square tokens, drawn ``size`` pixels long."""
    view = (grid[1], grid[0])
    raster = Raster(height=grid[0], width=grid[1], box=(0, 0, *view))
    geometry = ViewGeometry(scale=(1, 1), offset=(0, 0), view_size=view)
    (tokens,) = token_maps([raster], geometry, size=size)
    return tokens
