"""What a request's pictures become before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from feather_edge.images.geometry import Box


MAX_GRID_SIDE = 1024
"""Visual tokens per side of a raster that a manifest may name."""

TYPICAL_SIZE = (640, 480)
"""Width and height in pixels of a camera's picture: what engines are tuned for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Raster:
    """A ``height`` x ``width`` raster of visual tokens: an image, or one tile of it.

    Attributes:
        box: what its tokens divide evenly, in pixels of the picture. Reaches beyond the picture
            where the model sees padding, and not as far as its border where it is cropped.
        image: number of the picture, from 1.
        row_gap: image placeholders after each row of the raster that are no visual tokens, such
            as the newline of tiled families.
        end_gap: likewise, after the whole raster.
    """

    height: int
    width: int
    box: Box
    image: int = 1
    row_gap: int = 0
    end_gap: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedImages:
    """Pictures as the vision encoder and the prompt take them.

    Attributes:
        calls: the vision graph's inputs by name, for each time it runs; floats are float32.
            Pictures of different sizes take a call each. Empty without pictures.
        prompt_pieces: for each picture, what stands in the prompt in place of its placeholder:
            texts, and numbers of image placeholders in a row, one per visual token.
        rasters: the visual tokens of all pictures, in the order of the prompt.
        arrange: from the ``image_features`` of all calls to one row per image placeholder of the
            prompt; None where they are the same.
    """

    calls: tuple[dict[str, NDArray[Any]], ...]
    prompt_pieces: tuple[tuple[str | int, ...], ...]
    rasters: tuple[Raster, ...]
    arrange: Callable[[NDArray[Any]], NDArray[Any]] | None = None


def check_grid(grid: tuple[int, int]) -> None:
    """Refuse a raster that no manifest means.

    Raises:
        ValueError: if a side is not 1 to ``MAX_GRID_SIDE`` tokens.
    """
    if not all(1 <= side <= MAX_GRID_SIDE for side in grid):
        raise ValueError(f"a grid has {list(grid)} tokens; a side must be 1 to {MAX_GRID_SIDE}")
