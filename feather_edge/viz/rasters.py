"""Drawing over a picture that several rasters of visual tokens show: tiles and the whole of it.

Rasters that lie side by side share one copy of the picture; one that covers what another shows
too, such as the whole picture beside its tiles, gets a copy of its own to the right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL import Image

    from feather_edge.images import Raster, ViewGeometry
    from feather_edge.images.geometry import Box

GAP = 6
"""Pixels between two copies of the picture."""


@dataclass(frozen=True, kw_only=True)
class RasterPart:
    """One raster's part of a view.

    Attributes:
        first: index of its first token among the prompt's visual tokens.
        grid: (rows, columns) of its tokens.
        box: left, top, right, bottom in whole pixels of the view.
    """

    first: int
    grid: tuple[int, int]
    box: tuple[int, int, int, int]

    @property
    def tokens(self) -> slice:
        """Its tokens among the prompt's visual tokens."""
        return slice(self.first, self.first + self.grid[0] * self.grid[1])


def raster_levels(rasters: Sequence[Raster], geometry: ViewGeometry) -> list[list[RasterPart]]:
    """Return the rasters of one picture, those that overlap in lists of their own."""
    levels: list[list[RasterPart]] = []
    first = 0
    width, height = geometry.view_size
    for raster in rasters:
        x0, y0, x1, y1 = (round(edge) for edge in geometry.to_view(raster.box))
        box = (max(0, x0), max(0, y0), min(width, x1), min(height, y1))
        part = RasterPart(first=first, grid=(raster.height, raster.width), box=box)
        free = (level for level in levels if not any(_overlap(part, other) for other in level))
        level = next(free, None)
        if level is None:
            levels.append([part])
        else:
            level.append(part)
        first += raster.height * raster.width
    return levels


def draw_levels(
    view: Image.Image,
    levels: Sequence[Sequence[RasterPart]],
    draw: Callable[[Image.Image, RasterPart, int], Image.Image],
    *,
    size: int,
) -> Image.Image:
    """Return a copy of the view for each level, what ``draw`` makes of each part put in.

    Args:
        view: the picture that the model saw.
        levels: see ``raster_levels``.
        draw: from a part's pixels, the part, and the length of its longer side in pixels.
        size: longer side of one copy in pixels.
    """
    from PIL import Image

    scale = size / max(view.size)
    width, height = (round(side * scale) for side in view.size)
    sheet = Image.new("RGB", (len(levels) * (width + GAP) - GAP, height), (255, 255, 255))
    for number, level in enumerate(levels):
        # What no token sees stays black.
        copy = Image.new("RGB", (width, height))
        for part in level:
            left, top, right, bottom = (round(edge * scale) for edge in part.box)
            room = (right - left, bottom - top)
            drawn = draw(view.crop(part.box), part, max(room))
            copy.paste(drawn.resize(room, Image.Resampling.NEAREST), (left, top))
        sheet.paste(copy, (number * (width + GAP), 0))
    return sheet


def within(boxes: Sequence[tuple[Box, str]], part: RasterPart) -> list[tuple[Box, str]]:
    """Return boxes of the view in pixels of a part."""
    left, top = part.box[:2]
    return [
        ((x0 - left, y0 - top, x1 - left, y1 - top), colour) for (x0, y0, x1, y1), colour in boxes
    ]


def _overlap(one: RasterPart, other: RasterPart) -> bool:
    (x0, y0, x1, y1), (u0, v0, u1, v1) = one.box, other.box
    return min(x1, u1) - max(x0, u0) > 1 and min(y1, v1) - max(y0, v0) > 1
