"""Tiles that cover the picture, each a raster of its own, then a thumbnail: InternVL.

The picture is stretched over the arrangement of tiles whose aspect ratio is nearest to its own,
so no tile shows padding. A picture that takes one tile has no thumbnail.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from feather_edge.checkpoint.preprocessing import PreprocessConfig
from feather_edge.images.geometry import ViewGeometry
from feather_edge.images.pixels import normalise, preprocess, resize_to
from feather_edge.images.prepared import TYPICAL_SIZE, PreparedImages, Raster, check_grid
from feather_edge.images.raster import whole_raster

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from PIL import Image

MAX_TILES = 1024
"""Of one picture, that a manifest may name."""


class TiledImages(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="layout",
    tag="tiled",
):
    """Every picture becomes tiles and a thumbnail of one size.

    Attributes:
        token_id: of the image placeholder.
        grid: (height, width) of the visual tokens of one tile, which they divide evenly.
        preprocess: from the whole picture to the thumbnail; tiles share all steps after the
            resize.
        min_tiles: fewest tiles of a picture, the thumbnail not counted.
        max_tiles: most of them.
        before: text before the visual tokens of a picture.
        after: text after them.
    """

    token_id: int
    grid: tuple[int, int]
    preprocess: PreprocessConfig
    min_tiles: int
    max_tiles: int
    before: str
    after: str

    def __post_init__(self) -> None:
        check_grid(self.grid)
        if not 1 <= self.min_tiles <= self.max_tiles <= MAX_TILES:
            raise ValueError(
                f"a picture has {self.min_tiles} to {self.max_tiles} tiles; allowed are 1 to "
                f"{MAX_TILES}, the smaller number first"
            )

    @property
    def typical_grids(self) -> tuple[tuple[int, int], ...]:
        """Rasters of a picture of usual size."""
        return (self.grid,) * self._num_images(TYPICAL_SIZE)

    def vision_dims(self, max_visual_tokens: int) -> dict[str, tuple[int, int, int]]:
        """Return (smallest, usual, largest) of the vision graph's named dimensions."""
        most = max_visual_tokens // math.prod(self.grid)
        return {"num_images": (1, min(len(self.typical_grids), most), most)}

    def prepare(self, pictures: Sequence[Image.Image]) -> PreparedImages:
        """Return what the vision encoder and the prompt take of ``pictures``."""
        if not pictures:
            return PreparedImages(calls=(), prompt_pieces=(), rasters=())
        num_tokens = math.prod(self.grid)
        return PreparedImages(
            calls=({"pixel_values": np.concatenate([self._tiles(each) for each in pictures])},),
            prompt_pieces=tuple(
                (self.before, self._num_images(each.size) * num_tokens, self.after)
                for each in pictures
            ),
            rasters=tuple(
                raster
                for number, each in enumerate(pictures, 1)
                for raster in self._rasters(each.size, number)
            ),
        )

    def view(self, picture: Image.Image) -> Image.Image:
        """Return the picture as the tiles show it."""
        return resize_to(picture, self.geometry(picture.size).view_size, self.preprocess.resample)

    def geometry(self, size: tuple[int, int]) -> ViewGeometry:
        """Return where a picture of ``size`` (width, height) lies in its view."""
        rows, columns = self.arrangement(size)
        height, width = self.preprocess.output_size
        view = (columns * width, rows * height)
        return ViewGeometry(
            scale=(view[0] / size[0], view[1] / size[1]), offset=(0, 0), view_size=view
        )

    def arrangement(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (rows, columns) of the tiles of a picture of ``size`` (width, height).

        The nearest aspect ratio wins; of equally near ones that with more tiles, as long as they
        have less than twice the picture's pixels.
        """
        aspect_ratio, area = size[0] / size[1], size[0] * size[1]
        tile_area = math.prod(self.preprocess.output_size)
        best, smallest = (1, 1), math.inf
        for columns, rows in self._arrangements():
            distance = abs(aspect_ratio - columns / rows)
            is_filled = area > 0.5 * tile_area * columns * rows
            if distance < smallest or (distance == smallest and is_filled):
                best, smallest = (rows, columns), distance
        return best

    def _arrangements(self) -> list[tuple[int, int]]:
        """Return (columns, rows) of all arrangements, those of fewer tiles first."""
        pairs = [
            (columns, rows)
            for columns in range(1, self.max_tiles + 1)
            for rows in range(-(-self.min_tiles // columns), self.max_tiles // columns + 1)
        ]
        return sorted(pairs, key=math.prod)

    def _num_images(self, size: tuple[int, int]) -> int:
        num_tiles = math.prod(self.arrangement(size))
        return num_tiles + (num_tiles > 1)

    def _tiles(self, picture: Image.Image) -> NDArray[np.float32]:
        """Return tiles in rows, then the thumbnail: [n, 3, height, width]."""
        rows, columns = self.arrangement(picture.size)
        thumbnail = preprocess([picture], self.preprocess)
        if rows * columns == 1:
            return thumbnail
        tile = self.preprocess.output_size
        pixels = np.asarray(self.view(picture)).reshape(rows, tile[0], columns, tile[1], 3)
        tiles = normalise(pixels.swapaxes(1, 2).reshape(-1, *tile, 3), self.preprocess)
        return np.concatenate([tiles, thumbnail])

    def _rasters(self, size: tuple[int, int], number: int) -> list[Raster]:
        rows, columns = self.arrangement(size)
        whole = whole_raster(size, self.grid, self.preprocess, image=number)
        if rows * columns == 1:
            return [whole]
        width, height = size[0] / columns, size[1] / rows
        tiles = [
            Raster(
                height=self.grid[0],
                width=self.grid[1],
                box=(column * width, row * height, (column + 1) * width, (row + 1) * height),
                image=number,
            )
            for row in range(rows)
            for column in range(columns)
        ]
        return [*tiles, whole]
