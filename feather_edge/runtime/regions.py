"""From the user's boxes in a picture to the visual tokens that see them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from feather_edge.errors import RequestError
from feather_edge.runtime.preprocess import to_model_view

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from feather_edge.manifest import ImageSpec
    from feather_edge.pruning import Layout, Region

EPSILON = 1e-6
"""Of a token's side: rounding must not make a box on a token's border overlap its neighbour."""


def mark_regions(
    layout: Layout,
    regions: Sequence[Region],
    sizes: Sequence[tuple[int, int]],
    image: ImageSpec,
) -> Layout:
    """Return the layout with the rows that ``regions`` protect and forbid.

    A token that a protected and a forbidden region share is protected: what was asked to stay
    must not get lost at a border.

    Args:
        layout: of the unpruned prompt.
        regions: boxes in pixels of the pictures.
        sizes: (width, height) of each picture.
        image: how pictures become visual tokens.

    Raises:
        RequestError: if a region is not in its picture, or the model does not see it, or is left
            without effect by others, or if an image would lose all of its tokens.
    """
    marks = {rule: np.zeros(layout.num_rows, np.bool_) for rule in ("protect", "forbid")}
    pairs = [(region, _rows(layout, region, sizes, image)) for region in regions]
    for region, rows in pairs:
        marks[region.rule][rows] = True
    protected, forbidden = marks["protect"], marks["forbid"] & ~marks["protect"]
    for region, rows in pairs:
        if region.rule == "forbid" and not forbidden[rows].any():
            raise RequestError(
                f"{region} has no effect: every visual token in it is protected by another region"
            )
    for span in range(len(layout.spans)):
        if forbidden[layout.rows(span)].all():
            raise RequestError(
                f"forbidden regions cover every visual token of image {span + 1}; leave some, or "
                f"ask without the image"
            )
    return layout.with_regions(protected=protected, forbidden=forbidden)


def overlapping_tokens(
    region: Region, size: tuple[int, int], image: ImageSpec
) -> NDArray[np.int64]:
    """Return the ascending raster indices of the tokens that see a part of ``region``.

    Raises:
        RequestError: if the region is not within the picture of ``size`` (width, height), or no
            token sees any of it.
    """
    x0, y0, x1, y1 = region.box
    if x0 < 0 or y0 < 0 or x1 > size[0] or y1 > size[1]:
        raise RequestError(
            f"{region} is not within image {region.image}, which has {size[0]} x {size[1]} pixels"
        )
    height, width = image.preprocess.output_size
    # Patches are whole pixels: a vision encoder leaves the last few of 384 / 14 unseen.
    token = (width // image.grid_width, height // image.grid_height)
    left, top, right, bottom = to_model_view(region.box, size, image.preprocess)
    columns = _overlap(left / token[0], right / token[0], image.grid_width)
    rows = _overlap(top / token[1], bottom / token[1], image.grid_height)
    if not len(columns) or not len(rows):
        raise RequestError(
            f"{region} lies in a part of image {region.image} that the model does not see: it is "
            f"cropped before the vision encoder"
        )
    raster = np.arange(image.grid_height * image.grid_width, dtype=np.int64)
    grid = raster.reshape(image.grid_height, image.grid_width)
    return grid[rows.start : rows.stop, columns.start : columns.stop].ravel()


def _overlap(start: float, end: float, num_tokens: int) -> range:
    """Return the tokens of one axis that overlap (start, end), in tokens."""
    first, beyond = math.floor(start + EPSILON), math.ceil(end - EPSILON)
    return range(max(0, first), min(num_tokens, max(beyond, first + 1)))


def _rows(
    layout: Layout, region: Region, sizes: Sequence[tuple[int, int]], image: ImageSpec
) -> NDArray[np.int64]:
    """Return the rows of the prompt that a region speaks of."""
    if region.image > len(sizes):
        raise RequestError(f"{region} is of image {region.image}, but there are {len(sizes)}")
    tokens = overlapping_tokens(region, sizes[region.image - 1], image)
    return layout.spans[region.image - 1].start + tokens
