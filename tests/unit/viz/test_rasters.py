"""Tiles share one copy of the picture; the whole picture, which they show too, gets its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from feather_edge.images import Raster, ViewGeometry
from feather_edge.viz.rasters import GAP, draw_levels, raster_levels, within

if TYPE_CHECKING:
    from feather_edge.viz.rasters import RasterPart

# A picture of 40 x 20 pixels, seen in twice the size, as two tiles and as a whole.
GEOMETRY = ViewGeometry(scale=(2.0, 2.0), offset=(0.0, 0.0), view_size=(80, 40))
RASTERS = (
    Raster(height=2, width=2, box=(0, 0, 20, 20)),
    Raster(height=2, width=2, box=(20, 0, 40, 20)),
    Raster(height=3, width=5, box=(0, 0, 40, 20)),
)


def test_what_overlaps_gets_another_level() -> None:
    levels = raster_levels(RASTERS, GEOMETRY)

    assert [[part.box for part in level] for level in levels] == [
        [(0, 0, 40, 40), (40, 0, 80, 40)],
        [(0, 0, 80, 40)],
    ]
    assert [part.tokens for level in levels for part in level] == [
        slice(0, 4), slice(4, 8), slice(8, 23),
    ]  # fmt: skip


def test_every_part_is_drawn_in_its_place() -> None:
    view = Image.new("RGB", (80, 40), (10, 20, 30))

    def draw(pixels: Image.Image, part: RasterPart, size: int) -> Image.Image:
        assert max(pixels.size) * 2 == size
        return Image.new("RGB", (size, size), (part.first + 1, 0, 0))

    sheet = np.asarray(draw_levels(view, raster_levels(RASTERS, GEOMETRY), draw, size=160))

    assert sheet.shape == (80, 2 * 160 + GAP, 3)
    assert {tuple(pixel) for pixel in sheet[:, :80].reshape(-1, 3)} == {(1, 0, 0)}
    assert {tuple(pixel) for pixel in sheet[:, 80:160].reshape(-1, 3)} == {(5, 0, 0)}
    assert {tuple(pixel) for pixel in sheet[:, 160 + GAP :].reshape(-1, 3)} == {(9, 0, 0)}


def test_boxes_move_into_a_part() -> None:
    _, right = raster_levels(RASTERS, GEOMETRY)[0]
    assert within([((30, 5, 60, 9), "#fff")], right) == [((-10, 5, 20, 9), "#fff")]
