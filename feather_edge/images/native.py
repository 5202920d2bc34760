"""Pictures that keep their resolution: Qwen2-VL, Qwen2.5-VL and Qwen3-VL.

Each picture is resized to a multiple of a merge block, cut into patches, and encoded in a call of
its own. Whatever depends on its size is computed here and enters the vision graph as an input; see
``feather_edge.export.blocks.vision_patches`` for the table.

Letters: V visual tokens, M patches of one, row by row, W windows, Q visual tokens of a window.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from feather_edge.checkpoint.patch_preprocessing import PatchPreprocessConfig
from feather_edge.errors import RequestError
from feather_edge.images.geometry import ViewGeometry
from feather_edge.images.pixels import normalise, resize_to
from feather_edge.images.prepared import TYPICAL_SIZE, PreparedImages, Raster

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from PIL import Image

MAX_ASPECT_RATIO = 200
MAX_PATCHES = 2**17
"""Of a picture, twice what published models take; a manifest must not exhaust the memory."""
MAX_HEAD_DIM, MAX_WINDOW_SIDE, MAX_POSITION_SIDE = 1024, 32, 4096


class NativeImages(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="layout",
    tag="native",
):
    """Every picture keeps its resolution, within limits, and becomes one raster.

    Attributes:
        token_id: of the image placeholder.
        preprocess: from the picture to its patches.
        head_dim: of the vision encoder's attention, all of it rotated.
        rope_theta: base of its rotary frequencies.
        window_size: visual tokens per side of a window of attention; 0 where every layer attends
            to the whole picture.
        position_side: side of the square of learned position embeddings that is stretched over
            the picture; 0 for none.
    """

    token_id: int
    preprocess: PatchPreprocessConfig
    head_dim: int
    rope_theta: float = 10_000.0
    window_size: int = 0
    position_side: int = 0

    def __post_init__(self) -> None:
        if not 4 <= self.head_dim <= MAX_HEAD_DIM or self.head_dim % 4:
            raise ValueError(
                f"head_dim is {self.head_dim}; it must be a multiple of 4, up to {MAX_HEAD_DIM}"
            )
        if not 0 < self.rope_theta < math.inf:
            raise ValueError(f"rope_theta is {self.rope_theta}; it must be a number above 0")
        side = self.window_size * self.preprocess.merge_size
        if not 0 <= side <= MAX_WINDOW_SIDE:
            raise ValueError(
                f"a window has {side} patches a side; it must be 0 to {MAX_WINDOW_SIDE}"
            )
        if not 0 <= self.position_side <= MAX_POSITION_SIDE:
            raise ValueError(
                f"position_side is {self.position_side}; it must be 0 to {MAX_POSITION_SIDE}"
            )

    @property
    def typical_grids(self) -> tuple[tuple[int, int], ...]:
        """The raster of a picture of usual size."""
        return (self._grid(TYPICAL_SIZE),)

    def vision_dims(self, max_visual_tokens: int) -> dict[str, tuple[int, int, int]]:
        """Return (smallest, usual, largest) of the vision graph's named dimensions."""
        height, width = self._grid(TYPICAL_SIZE)
        usual = min(height * width, max_visual_tokens)
        dims = {"visual_tokens": (1, usual, max_visual_tokens)}
        if self.window_size:
            # The most windows for its tokens has a picture that is long and thin.
            largest = max(
                self._num_windows(side, min(max_visual_tokens // side, _longest(side)))
                for side in range(1, math.isqrt(max_visual_tokens) + 1)
            )
            dims["num_windows"] = (1, min(self._num_windows(height, width), largest), largest)
        return dims

    def prepare(self, pictures: Sequence[Image.Image]) -> PreparedImages:
        """Return what the vision encoder and the prompt take of ``pictures``.

        Raises:
            RequestError: if a picture is too elongated to be resized as the model wants it.
        """
        grids = [self._grid(picture.size) for picture in pictures]
        return PreparedImages(
            calls=tuple(
                {"pixel_values": self._patches(picture), **self._tables(grid)}
                for picture, grid in zip(pictures, grids, strict=True)
            ),
            prompt_pieces=tuple((height * width,) for height, width in grids),
            rasters=tuple(
                Raster(height=height, width=width, box=(0.0, 0.0, *picture.size), image=number)
                for number, (picture, (height, width)) in enumerate(
                    zip(pictures, grids, strict=True), 1
                )
            ),
        )

    def view(self, picture: Image.Image) -> Image.Image:
        """Return the picture as the model sees it.

        Raises:
            RequestError: see ``prepare``.
        """
        size = self.geometry(picture.size).view_size
        return resize_to(picture, size, self.preprocess.resample)

    def geometry(self, size: tuple[int, int]) -> ViewGeometry:
        """Return where a picture of ``size`` (width, height) lies in its view.

        Raises:
            RequestError: see ``prepare``.
        """
        height, width = (side * self.preprocess.block_size for side in self._grid(size))
        scale = (width / size[0], height / size[1])
        return ViewGeometry(scale=scale, offset=(0.0, 0.0), view_size=(width, height))

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of the raster of a picture of ``size`` (width, height).

        The area is kept within its limits, the aspect ratio as far as whole blocks allow.
        """
        width, height = size
        if max(size) > MAX_ASPECT_RATIO * min(size):
            raise RequestError(
                f"image of {width} x {height} pixels is too elongated for this model; its longer "
                f"side may be at most {MAX_ASPECT_RATIO} times the shorter: crop or pad it"
            )
        block = self.preprocess.block_size
        rows, columns = round(height / block), round(width / block)
        area, pixels = height * width, rows * columns * block**2
        if pixels > self.preprocess.max_pixels:
            beta = math.sqrt(area / self.preprocess.max_pixels)
            rows = max(1, math.floor(height / beta / block))
            columns = max(1, math.floor(width / beta / block))
        elif pixels < self.preprocess.min_pixels:
            beta = math.sqrt(self.preprocess.min_pixels / area)
            rows = math.ceil(height * beta / block)
            columns = math.ceil(width * beta / block)
        num_patches = rows * columns * self.preprocess.merge_size**2
        if num_patches > MAX_PATCHES:
            raise RequestError(
                f"image of {width} x {height} pixels becomes {num_patches} patches, but at most "
                f"{MAX_PATCHES} are allowed: scale it down or crop it"
            )
        return rows, columns

    def _patches(self, picture: Image.Image) -> NDArray[np.float32]:
        """Return the patches [V, M, 3 * frames * side * side] of a picture."""
        config = self.preprocess
        patch, merge = config.patch_size, config.merge_size
        pixels = normalise(np.asarray(self.view(picture)), config)  # [3, height, width]
        rows, columns = (side // config.block_size for side in pixels.shape[1:])
        blocks = pixels.reshape(3, rows, merge, patch, columns, merge, patch)
        by_patch = blocks.transpose(1, 4, 2, 5, 0, 3, 6)  # block and patch, then channel and pixel
        frames = np.repeat(by_patch[..., None, :, :], config.temporal_patch_size, axis=5)
        return frames.reshape(rows * columns, merge**2, -1)

    def _tables(self, grid: tuple[int, int]) -> dict[str, NDArray[Any]]:
        """Return the inputs of the vision graph that only depend on the raster."""
        cos, sin = self._rotary(grid)
        tables = {"rotary_cos": cos, "rotary_sin": sin}
        if self.window_size:
            tables |= self._windows(grid)
        if self.position_side:
            tables |= self._positions(grid)
        return tables

    def _places(self, grid: tuple[int, int]) -> NDArray[np.int64]:
        """Return (row, column) of each patch in the picture, [2, V, M]."""
        merge = self.preprocess.merge_size
        places = np.indices((grid[0] * merge, grid[1] * merge), np.int64)
        by_block = places.reshape(2, grid[0], merge, grid[1], merge).transpose(0, 1, 3, 2, 4)
        return by_block.reshape(2, grid[0] * grid[1], merge**2)

    def _rotary(self, grid: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return cos and sin [V, M, Dh/2]: the row turns the first half, the column the rest."""
        half = self.head_dim // 2
        exponents = np.arange(0, half, 2, dtype=np.float32) / np.float32(half)
        frequencies = (1.0 / np.float32(self.rope_theta) ** exponents).astype(np.float32)
        rows, columns = self._places(grid).astype(np.float32)[..., None] * frequencies
        angles = np.concatenate([rows, columns], axis=-1)
        return np.cos(angles), np.sin(angles)

    def _windows(self, grid: tuple[int, int]) -> dict[str, NDArray[Any]]:
        """Return who attends to whom in layers with windows.

        Windows at the border hold fewer visual tokens; their free slots repeat token 0, unseen.
        """
        side = self.window_size
        row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
        window = row // side * math.ceil(grid[1] / side) + column // side
        slots = window * side**2 + row % side * side + column % side
        index = np.zeros((self._num_windows(*grid), side**2), np.int64)
        is_token = np.zeros(index.shape, np.bool_)
        index.flat[slots] = np.arange(len(slots))
        is_token.flat[slots] = True
        is_patch = np.repeat(is_token, self.preprocess.merge_size**2, axis=1)
        mask = np.repeat(is_patch[:, None, None, :], is_patch.shape[1], axis=2)
        return {"window_index": index, "window_mask": mask, "window_slots": slots}

    def _positions(self, grid: tuple[int, int]) -> dict[str, NDArray[Any]]:
        """Return the four learned positions around each patch, and their weights, [V, M, 4].

        The corners of the square lie on the corners of the picture; in between it is bilinear.
        """
        side = self.position_side
        near, shares = [], []
        for place, tokens in zip(self._places(grid), grid, strict=True):
            steps = np.float32(max(1, tokens * self.preprocess.merge_size - 1))
            exact = place.astype(np.float32) * np.float32(side - 1) / steps
            low = np.floor(exact).astype(np.int64)
            beyond = exact - low.astype(np.float32)
            near.append(np.stack([low, np.minimum(low + 1, side - 1)], axis=-1))
            shares.append(np.stack([1 - beyond, beyond], axis=-1))
        (rows, columns), (down, right) = near, shares
        index = rows[..., :, None] * side + columns[..., None, :]  # [V, M, 2, 2]
        weights = down[..., :, None] * right[..., None, :]
        shape = (*index.shape[:2], 4)
        return {
            "position_index": index.reshape(shape),
            "position_weights": weights.reshape(shape),
        }

    def _num_windows(self, height: int, width: int) -> int:
        return math.ceil(height / self.window_size) * math.ceil(width / self.window_size)


def _longest(side: int) -> int:
    """Return the longer side of a raster whose shorter one is ``side``, before rounding."""
    return MAX_ASPECT_RATIO * (side + 1)
