"""Which visual token each pixel of a drawing shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from feather_edge.images import Raster, ViewGeometry

__all__ = ["NO_TOKEN", "TokenMap", "token_maps"]

NO_TOKEN = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenMap:
    """Rasters that share no pixel, on one drawing.

    Attributes:
        pixels: [height, width] of the drawing: the token that each shows, among all of the
            prompt; ``NO_TOKEN`` where none does.
        indices: [n] of all tokens of the rasters, also of those that show padding.
    """

    pixels: NDArray[np.int64]
    indices: NDArray[np.int64]


def token_maps(
    rasters: Sequence[Raster], geometry: ViewGeometry, *, size: int
) -> tuple[TokenMap, ...]:
    """Return as few maps of a picture as show each of its rasters.

    Rasters that show the same pixels, as a thumbnail and tiles do, go to different maps.

    Args:
        rasters: of one picture, in the order of the prompt.
        geometry: where the picture lies in the view that is drawn.
        size: length of the longer side of the drawing in pixels.
    """
    view_width, view_height = geometry.view_size
    scale = size / max(view_width, view_height)
    shape = (round(view_height * scale), round(view_width * scale))
    maps: list[TokenMap] = []
    first = 0
    for raster in rasters:
        box = geometry.to_view(raster.box)
        rows = _cells((box[1], box[3]), raster.height, view_height, num_pixels=shape[0])
        columns = _cells((box[0], box[2]), raster.width, view_width, num_pixels=shape[1])
        is_shown = (rows >= 0)[:, None] & (columns >= 0)[None, :]
        indices = first + np.arange(raster.height * raster.width)
        cells = rows[:, None] * raster.width + columns[None, :]
        pixels = np.where(is_shown, first + cells, NO_TOKEN)
        first += len(indices)
        place = next((n for n, m in enumerate(maps) if not (m.pixels[is_shown] >= 0).any()), None)
        if place is None:
            maps.append(TokenMap(pixels=pixels, indices=indices))
        else:
            maps[place] = TokenMap(
                pixels=np.maximum(maps[place].pixels, pixels),
                indices=np.concatenate([maps[place].indices, indices]),
            )
    return tuple(maps)


def _cells(
    ends: tuple[float, float], num_tokens: int, extent: int, *, num_pixels: int
) -> NDArray[np.int64]:
    """Return the token of each pixel of one axis, -1 outside of the raster.

    Args:
        ends: of the raster, in a view of ``extent`` pixels.
        num_tokens: of the raster.
        extent: of the view.
        num_pixels: of the drawing.
    """
    centres = (np.arange(num_pixels) + 0.5) * (extent / num_pixels)
    cells = np.floor((centres - ends[0]) / (ends[1] - ends[0]) * num_tokens).astype(np.int64)
    return np.where((cells >= 0) & (cells < num_tokens), cells, NO_TOKEN)
