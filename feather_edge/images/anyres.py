"""A thumbnail and tiles that are stitched into one raster: LLaVA-NeXT and LLaVA-OneVision.

The picture is fitted into the best of a list of canvases and padded there with black. The vision
encoder sees a thumbnail and the canvas in tiles. Of the canvas' visual tokens, which form one
large raster again, those that show padding only are cut off; what is left may be scaled down to a
number of tiles, and after each of its rows comes a newline, which is no visual token. Sizes,
roundings and the order of equal choices are those of transformers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from feather_edge.checkpoint.preprocessing import PreprocessConfig
from feather_edge.errors import RequestError
from feather_edge.images.geometry import ViewGeometry
from feather_edge.images.pixels import normalise, preprocess, resize_to
from feather_edge.images.prepared import TYPICAL_SIZE, PreparedImages, Raster, check_grid
from feather_edge.images.raster import whole_raster

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from PIL import Image

Pair = tuple[int, int]
"""Vertical, then horizontal."""

NEWLINE = -1
"""Row of the graph's features that is the newline: the last."""

LARGEST_EXCESS = 1.1
"""A raster whose sides exceed what ``max_tiles`` allow by no more than this is left as it is."""

MAX_TILES_PER_SIDE = 64
"""Of a canvas, that a manifest may name."""


class AnyresImages(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="layout",
    tag="anyres",
):
    """Every picture becomes a thumbnail and a raster of its own shape.

    Attributes:
        token_id: of the image placeholder.
        grid: (height, width) of the visual tokens of one tile.
        canvases: (height, width) in pixels that a picture may be fitted into, multiples of a
            tile; the first of equally good ones is taken.
        preprocess: from the whole picture to the thumbnail; tiles share all steps after the
            resize.
        max_tiles: as many tiles' worth of tokens a raster may have; None for no limit.
        among_others: from the whole picture to its only tile, when it is one of several pictures;
            None where each is split as if it were alone.
    """

    token_id: int
    grid: tuple[int, int]
    canvases: tuple[tuple[int, int], ...]
    preprocess: PreprocessConfig
    max_tiles: int | None = None
    among_others: PreprocessConfig | None = None

    def __post_init__(self) -> None:
        check_grid(self.grid)
        tile = self.preprocess.output_size
        for canvas in self.canvases:
            sides = [
                (extent // side, extent % side) for extent, side in zip(canvas, tile, strict=True)
            ]
            if any(rest or not 1 <= tiles <= MAX_TILES_PER_SIDE for tiles, rest in sides):
                raise ValueError(
                    f"a canvas of {list(canvas)} pixels is no 1 to {MAX_TILES_PER_SIDE} tiles of "
                    f"{list(tile)} in each axis"
                )
        if not self.canvases or (self.max_tiles is not None and self.max_tiles < 1):
            raise ValueError("there must be a canvas, and max_tiles must be 1 or more")

    @property
    def typical_grids(self) -> tuple[tuple[int, int], ...]:
        """Rasters of a picture of usual size."""
        rasters = self._rasters(TYPICAL_SIZE, self.fit(TYPICAL_SIZE), number=1)
        return tuple((raster.height, raster.width) for raster in rasters)

    def vision_dims(self, max_visual_tokens: int) -> dict[str, tuple[int, int, int]]:
        """Return (smallest, usual, largest) of the vision graph's named dimensions.

        The largest is for one picture of any shape, or for as many usual ones as fit the tokens.
        """
        usual = 1 + math.prod(self.fit(TYPICAL_SIZE).tiles)
        num_usual = max_visual_tokens // sum(
            height * width for height, width in self.typical_grids
        )
        num_whole = max_visual_tokens // math.prod(self.grid)
        tile = math.prod(self.preprocess.output_size)
        any_shape = 1 + max(math.prod(canvas) // tile for canvas in self.canvases)
        return {"num_images": (1, usual, max(any_shape, usual * num_usual, num_whole))}

    def prepare(self, pictures: Sequence[Image.Image]) -> PreparedImages:
        """Return what the vision encoder and the prompt take of ``pictures``.

        Raises:
            RequestError: if a picture is too elongated for the model.
        """
        is_split = self.among_others is None or len(pictures) < 2
        take = self._split if is_split else self._whole
        parts = [take(picture, number) for number, picture in enumerate(pictures, 1)]
        if not parts:
            return PreparedImages(calls=(), prompt_pieces=(), rasters=())
        mixes, first = [], 0
        for part in parts:
            mixes.append(part.mix.shifted(first))
            first += len(part.tiles) * math.prod(self.grid)
        return PreparedImages(
            calls=({"pixel_values": np.concatenate([part.tiles for part in parts])},),
            prompt_pieces=tuple((len(part.mix.rows),) for part in parts),
            rasters=tuple(raster for part in parts for raster in part.rasters),
            arrange=partial(_arrange, mixes=mixes),
        )

    def view(self, picture: Image.Image) -> Image.Image:
        """Return the picture as the tiles show it, without the black around it."""
        height, width = self.fit(picture.size).resized
        return resize_to(picture, (width, height), self.preprocess.resample)

    def geometry(self, size: tuple[int, int]) -> ViewGeometry:
        """Return where a picture of ``size`` (width, height) lies in its view."""
        height, width = self.fit(size).resized
        scale = (width / size[0], height / size[1])
        return ViewGeometry(scale=scale, offset=(0, 0), view_size=(width, height))

    def fit(self, size: tuple[int, int]) -> Fit:
        """Return how a picture of ``size`` (width, height) is cut.

        Raises:
            RequestError: if it is so elongated that nothing of it is left.
        """
        picture = (size[1], size[0])
        canvas = _best_canvas(picture, self.canvases)
        height, width = resized = _resized_into(picture, canvas)
        tile = self.preprocess.output_size
        tiles = (canvas[0] // tile[0], canvas[1] // tile[1])
        stitched = (tiles[0] * self.grid[0], tiles[1] * self.grid[1])
        cut = _cut(picture, stitched)
        seen = (stitched[0] - 2 * cut[0], stitched[1] - 2 * cut[1])
        return Fit(
            resized=resized,
            offset=((canvas[0] - height) // 2, (canvas[1] - width) // 2),
            tiles=tiles,
            cut=cut,
            seen=seen,
            kept=self._scaled_down(seen, picture),
        )

    def _scaled_down(self, seen: Pair, picture: Pair) -> Pair:
        if self.max_tiles is None:
            return seen
        ratio = math.sqrt(math.prod(seen) / (self.max_tiles * self.grid[0] ** 2))
        if ratio <= LARGEST_EXCESS:
            return seen
        kept = (int(seen[0] // ratio), int(seen[1] // ratio))
        if not all(kept):
            raise RequestError(
                f"image of {picture[1]} x {picture[0]} pixels is too elongated: the model scales "
                f"its {seen[0]} x {seen[1]} visual tokens down to {kept[0]} x {kept[1]}; crop it"
            )
        return kept

    def _whole(self, picture: Image.Image, number: int) -> _Part:
        """One tile and a newline."""
        assert self.among_others is not None  # noqa: S101 - asked by the caller
        raster = whole_raster(picture.size, self.grid, self.among_others, image=number, end_gap=1)
        return _Part(
            tiles=preprocess([picture], self.among_others),
            rasters=(raster,),
            mix=_Mix(rows=np.append(np.arange(math.prod(self.grid)), NEWLINE)),
        )

    def _split(self, picture: Image.Image, number: int) -> _Part:
        fit, tile = self.fit(picture.size), self.preprocess.output_size
        (height, width), (top, left) = fit.resized, fit.offset
        canvas = np.zeros((fit.tiles[0] * tile[0], fit.tiles[1] * tile[1], 3), np.uint8)
        pixels = resize_to(picture, (width, height), self.preprocess.resample)
        canvas[top : top + height, left : left + width] = np.asarray(pixels)
        tiles = canvas.reshape(fit.tiles[0], tile[0], fit.tiles[1], tile[1], 3).swapaxes(1, 2)
        tiled = normalise(tiles.reshape(-1, *tile, 3), self.preprocess)
        return _Part(
            tiles=np.concatenate([preprocess([picture], self.preprocess), tiled]),
            rasters=self._rasters(picture.size, fit, number),
            mix=self._mix(fit),
        )

    def _rasters(self, size: tuple[int, int], fit: Fit, number: int) -> tuple[Raster, ...]:
        """Return the thumbnail and, unless nothing of it is left, the stitched raster."""
        is_left = all(fit.kept)
        # Newlines stay where a raster has lost all of its columns.
        end_gap = 0 if is_left else fit.kept[0]
        thumbnail = whole_raster(size, self.grid, self.preprocess, image=number, end_gap=end_gap)
        if not is_left:
            return (thumbnail,)
        tile = self.preprocess.output_size
        edges = []
        for axis, extent in ((1, size[0]), (0, size[1])):
            side = tile[axis] / self.grid[axis]  # pixels of the canvas per token
            scale = extent / fit.resized[axis]
            start = fit.cut[axis] * side - fit.offset[axis]
            edges.append((start * scale, (start + fit.seen[axis] * side) * scale))
        (x0, x1), (y0, y1) = edges
        stitched = Raster(
            height=fit.kept[0], width=fit.kept[1], box=(x0, y0, x1, y1), image=number, row_gap=1
        )
        return (thumbnail, stitched)

    def _mix(self, fit: Fit) -> _Mix:
        """Return what each placeholder of a picture is made of."""
        height, width = self.grid
        thumbnail = np.arange(height * width)
        tiled = len(thumbnail) * (1 + np.arange(math.prod(fit.tiles)))[:, None] + thumbnail
        by_tile = tiled.reshape(*fit.tiles, height, width).swapaxes(1, 2)
        stitched = by_tile.reshape(fit.tiles[0] * height, fit.tiles[1] * width)
        (top, left), (num_rows, num_columns) = fit.cut, fit.seen
        seen = stitched[top : top + num_rows, left : left + num_columns]
        if fit.kept == fit.seen:
            lines = np.pad(seen, ((0, 0), (0, 1)), constant_values=NEWLINE)
            return _Mix(rows=np.concatenate([thumbnail, lines.ravel()]))
        rows, weights = _bilinear(seen, fit.kept)
        lines = np.pad(rows, ((0, 0), (0, 1), (0, 0)), constant_values=NEWLINE)
        line_weights = np.pad(weights, ((0, 0), (0, 1), (0, 0)))
        line_weights[:, -1, 0] = 1
        alone = np.tile(np.array([1, 0, 0, 0], np.float32), (len(thumbnail), 1))
        return _Mix(
            rows=np.concatenate([np.repeat(thumbnail[:, None], 4, axis=1), lines.reshape(-1, 4)]),
            weights=np.concatenate([alone, line_weights.reshape(-1, 4)]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How a picture lies in its canvas.

    Attributes:
        resized: pixels of the picture in the canvas.
        offset: pixels of black before it.
        tiles: the canvas in tiles.
        cut: tokens that are cut off at either end of the stitched raster.
        seen: tokens that are left; of a very elongated picture there may be none in one axis.
        kept: tokens after the raster is scaled down; ``seen`` where it is not.
    """

    resized: Pair
    offset: Pair
    tiles: Pair
    cut: Pair
    seen: Pair
    kept: Pair


@dataclass(frozen=True, kw_only=True, eq=False)
class _Mix:
    """From features to one row for each placeholder of a picture.

    Attributes:
        rows: [placeholders], the feature of each; or [placeholders, 4], what it is mixed of.
        weights: [placeholders, 4] of the mix; None where nothing is mixed.
    """

    rows: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None

    def shifted(self, first: int) -> _Mix:
        """Return the mix of a picture whose features begin at row ``first``."""
        rows = np.where(self.rows == NEWLINE, NEWLINE, self.rows + first)
        return _Mix(rows=rows, weights=self.weights)

    def of(self, features: NDArray[Any]) -> NDArray[Any]:
        """Return the rows, [placeholders, D]."""
        if self.weights is None:
            return features[self.rows]
        mixed = np.zeros((len(self.rows), features.shape[1]), np.float32)
        for tap in range(4):
            mixed += features[self.rows[:, tap]] * self.weights[:, tap, None]
        return mixed.astype(features.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """What one picture adds to a request: tiles [n, 3, height, width], the thumbnail first."""

    tiles: NDArray[np.float32]
    rasters: tuple[Raster, ...]
    mix: _Mix


def _arrange(features: NDArray[Any], *, mixes: Sequence[_Mix]) -> NDArray[Any]:
    return np.concatenate([mix.of(features) for mix in mixes])


def _best_canvas(picture: Pair, canvases: Sequence[Pair]) -> Pair:
    """Return the canvas that shows most of a picture's pixels, and of those the least empty."""

    def worth(canvas: Pair) -> tuple[int, int]:
        scale = min(canvas[1] / picture[1], canvas[0] / picture[0])
        shown = int(picture[0] * scale) * int(picture[1] * scale)
        effective = min(shown, picture[0] * picture[1])
        return effective, effective - canvas[0] * canvas[1]

    return max(canvases, key=worth)


def _resized_into(picture: Pair, canvas: Pair) -> Pair:
    """Return the size of a picture that fills the canvas in one axis."""
    down, across = (canvas[axis] / picture[axis] for axis in range(2))
    if across < down:
        return min(math.ceil(picture[0] * across), canvas[0]), canvas[1]
    return canvas[0], min(math.ceil(picture[1] * down), canvas[1])


def _cut(picture: Pair, stitched: Pair) -> Pair:
    """Return how many tokens at either end of each axis show padding only."""
    if picture[1] / picture[0] > stitched[1] / stitched[0]:
        height = int(round(picture[0] * (stitched[1] / picture[1]), 7))
        return (stitched[0] - height) // 2, 0
    width = int(round(picture[1] * (stitched[0] / picture[0]), 7))
    return 0, (stitched[1] - width) // 2


def _bilinear(values: NDArray[np.int64], size: Pair) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return, for each cell of a scaled raster, four values and their weights, [h, w, 4] each.

    As torch's ``interpolate(mode="bilinear")``: corners not aligned, no antialiasing.
    """
    (low, high, share), (left, right, part) = (
        _axis_taps(values.shape[axis], size[axis]) for axis in range(2)
    )
    rows = [values[np.ix_(y, x)] for y in (low, high) for x in (left, right)]
    down, across = (1 - share, share), (1 - part, part)
    weights = [np.outer(y, x) for y in down for x in across]
    return np.stack(rows, axis=-1), np.stack(weights, axis=-1).astype(np.float32)


def _axis_taps(extent: int, size: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return both neighbours of each cell of a scaled axis, and the share of the second."""
    scale = np.float64(np.float32(extent) / np.float32(size))
    # One rounding to float32, as of torch's fused multiply and add.
    places = np.maximum(((np.arange(size) + 0.5) * scale - 0.5).astype(np.float32), 0)
    low = places.astype(np.int64)
    return low, np.minimum(low + 1, extent - 1), places - low.astype(np.float32)
