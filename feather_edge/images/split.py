"""Tiles of one size in rows and columns, then the whole picture: Idefics3 and SmolVLM."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from feather_edge.checkpoint.preprocessing import PreprocessConfig
from feather_edge.images.geometry import ViewGeometry
from feather_edge.images.pixels import check_pixels, normalise, to_rgb
from feather_edge.images.prepared import TYPICAL_SIZE, PreparedImages, Raster, check_grid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

LONGEST_EDGE = 4096
"""Pixels of the longer side that no resize of these families exceeds."""


class SplitImages(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="layout",
    tag="split",
):
    """Every picture is resized to a multiple of the tile, cut, and shown once more as a whole.

    Attributes:
        token_id: of the image placeholder.
        tile_side: of the square tiles, in pixels.
        seen_side: how much of it the vision encoder's patches cover, in pixels.
        tile_grid: (height, width) of a tile's raster, in visual tokens.
        longest_edge: of the picture after its first resize; None where there is none, or it is
            to the fixed size that ``pixels`` names.
        is_split: cut into tiles; otherwise a picture is one tile.
        pixels: a first resize to a fixed size, if any; the filter; rescaling, normalisation.
    """

    token_id: int
    tile_side: int
    seen_side: int
    tile_grid: tuple[int, int]
    longest_edge: int | None
    is_split: bool
    pixels: PreprocessConfig

    def __post_init__(self) -> None:
        check_grid(self.tile_grid)

    @property
    def typical_grids(self) -> tuple[tuple[int, int], ...]:
        """Rasters of a picture of usual size."""
        rows, columns = self._tiles(TYPICAL_SIZE)
        return (self.tile_grid,) * (rows * columns + 1)

    def vision_dims(self, max_visual_tokens: int) -> dict[str, tuple[int, int, int]]:
        """Return (smallest, usual, largest) of the vision graph's named dimensions."""
        height, width = self.tile_grid
        largest = max_visual_tokens // (height * width)
        return {"num_images": (1, min(len(self.typical_grids), largest), largest)}

    def prepare(self, pictures: Sequence[Image.Image]) -> PreparedImages:
        """Return what the vision encoder and the prompt take of ``pictures``.

        Raises:
            RequestError: if a picture is too large to be resized as the model wants it.
        """
        tiles = [tile for picture in pictures for tile in self._cut(picture)]
        rasters = [
            raster
            for number, picture in enumerate(pictures, 1)
            for raster in self._rasters(picture.size, number)
        ]
        return PreparedImages(
            calls=({"pixel_values": np.stack(tiles)},) if tiles else (),
            prompt_pieces=tuple(self._pieces(*self._tiles(each.size)) for each in pictures),
            rasters=tuple(rasters),
        )

    def view(self, picture: Image.Image) -> Image.Image:
        """Return the picture as the model sees it, all tiles in their places."""
        image = to_rgb(picture)
        for size in self._resizes(picture.size):
            image = self._resize(image, size)
        return image

    def geometry(self, size: tuple[int, int]) -> ViewGeometry:
        """Return where a picture of ``size`` (width, height) lies in its view."""
        width, height = view = self._resizes(size)[-1]
        return ViewGeometry(
            scale=(width / size[0], height / size[1]), offset=(0.0, 0.0), view_size=view
        )

    def _tiles(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the rows and columns that a picture of ``size`` is cut into; 0, 0 for none."""
        width, height = self._resizes(size)[-1]
        rows, columns = height // self.tile_side, width // self.tile_side
        return (rows, columns) if rows * columns > 1 else (0, 0)

    def _resizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the sizes (width, height) that a picture of ``size`` goes through."""
        sizes = []
        if self.pixels.resize_to is not None:
            sizes.append(self.pixels.resize_to[::-1])
        elif self.longest_edge is not None:
            sizes.append(_bounded(_with_longest_edge(size, self.longest_edge)))
        first = sizes[-1] if sizes else size
        side = self.tile_side
        sizes.append(_multiple(first, side) if self.is_split else (side, side))
        check_pixels(f"image of {size[0]} x {size[1]} pixels, resized for the model,", sizes[-1])
        return sizes

    def _cut(self, picture: Image.Image) -> list[np.ndarray]:
        """Return the tiles in rows, then the whole: [3, side, side] each."""
        view, side = self.view(picture), self.tile_side
        rows, columns = self._tiles(picture.size)
        boxes = [
            (left, top, left + side, top + side)
            for top in range(0, rows * side, side)
            for left in range(0, columns * side, side)
        ]
        tiles = [view.crop(box) for box in boxes]
        tiles.append(self._resize(view, (side, side)))
        return [normalise(np.asarray(tile), self.pixels) for tile in tiles]

    def _resize(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        from PIL import Image

        return image.resize(size, Image.Resampling[self.pixels.resample.upper()])

    def _pieces(self, rows: int, columns: int) -> tuple[str | int, ...]:
        num_tokens = math.prod(self.tile_grid)
        pieces: list[str | int] = []
        for row in range(1, rows + 1):
            for column in range(1, columns + 1):
                pieces += [f"<fake_token_around_image><row_{row}_col_{column}>", num_tokens]
            pieces.append("\n")
        gap = "\n" if rows else ""
        pieces += [f"{gap}<fake_token_around_image><global-img>", num_tokens]
        return (*pieces, "<fake_token_around_image>")

    def _rasters(self, size: tuple[int, int], number: int) -> list[Raster]:
        """Return one raster for each tile, and one for the whole picture."""
        geometry, side, seen = self.geometry(size), self.tile_side, self.seen_side
        rows, columns = self._tiles(size)
        boxes = [
            (column * side, row * side, column * side + seen, row * side + seen)
            for row in range(rows)
            for column in range(columns)
        ]
        share = seen / side
        width, height = geometry.view_size
        height_tokens, width_tokens = self.tile_grid
        return [
            Raster(
                height=height_tokens, width=width_tokens, box=geometry.to_image(box), image=number
            )
            for box in [*boxes, (0, 0, width * share, height * share)]
        ]


def _with_longest_edge(size: tuple[int, int], longest_edge: int) -> tuple[int, int]:
    """Return a size (width, height) whose longer side is given; the other one is made even."""
    width, height = size
    aspect_ratio = width / height
    if width >= height:
        shorter = int(longest_edge / aspect_ratio)
        return longest_edge, max(1, shorter + shorter % 2)
    shorter = int(longest_edge * aspect_ratio)
    return max(1, shorter + shorter % 2), longest_edge


def _bounded(size: tuple[int, int]) -> tuple[int, int]:
    width, height = size
    aspect_ratio = width / height
    if width >= height and width > LONGEST_EDGE:
        return LONGEST_EDGE, max(1, int(LONGEST_EDGE / aspect_ratio))
    if height > width and height > LONGEST_EDGE:
        return max(1, int(LONGEST_EDGE * aspect_ratio)), LONGEST_EDGE
    return size


def _multiple(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return (width, height) as multiples of ``side``, the longer one rounded up first."""
    width, height = size
    aspect_ratio = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        return width, math.ceil(int(width / aspect_ratio) / side) * side
    height = math.ceil(height / side) * side
    return math.ceil(int(height * aspect_ratio) / side) * side, height
