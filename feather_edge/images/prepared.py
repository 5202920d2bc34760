"""What a request's pictures become before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from feather_edge.images.geometry import Box


@dataclass(frozen=True, slots=True, kw_only=True)
class Raster:
    """A ``height`` x ``width`` raster of visual tokens: an image, or one tile of it.

    Attributes:
        box: what its tokens divide evenly, in pixels of the picture. Reaches beyond the picture
            where the model sees padding, and not as far as its border where it is cropped.
        image: number of the picture, from 1.
        row_gap: image placeholders after each row of the raster that are no visual tokens, such
            as the newline of tiled families.
    """

    height: int
    width: int
    box: Box
    image: int = 1
    row_gap: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedImages:
    """Pictures as the vision encoder and the prompt take them.

    Attributes:
        inputs: the vision graph's inputs by name; floats are float32. Empty without pictures.
        prompt_pieces: for each picture, what stands in the prompt in place of its placeholder:
            texts, and numbers of image placeholders in a row, one per visual token.
        rasters: the visual tokens of all pictures, in the order of the prompt.
        arrange: from the graph's ``image_features`` to one row per image placeholder of the
            prompt; None where they are the same.
    """

    inputs: dict[str, NDArray[Any]]
    prompt_pieces: tuple[tuple[str | int, ...], ...]
    rasters: tuple[Raster, ...]
    arrange: Callable[[NDArray[Any]], NDArray[Any]] | None = None
