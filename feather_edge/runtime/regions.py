"""From the user's boxes in a picture to the visual tokens that see them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from feather_edge.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from feather_edge.images import Raster
    from feather_edge.pruning import Layout, Region

EPSILON = 1e-6
"""Of a token's side: rounding must not make a box on a token's border overlap its neighbour."""


def mark_regions(
    layout: Layout,
    regions: Sequence[Region],
    sizes: Sequence[tuple[int, int]],
    rasters: Sequence[Raster],
) -> Layout:
    """Return the layout with the rows that ``regions`` protect and forbid.

    A token that a protected and a forbidden region share is protected: what was asked to stay
    must not get lost at a border.

    Args:
        layout: of the unpruned prompt.
        regions: boxes in pixels of the pictures.
        sizes: (width, height) of each picture.
        rasters: what each span of the layout shows.

    Raises:
        RequestError: if a region is not in its picture, or the model does not see it, or is left
            without effect by others, or if an image would lose all of its tokens.
    """
    marks = {rule: np.zeros(layout.num_rows, np.bool_) for rule in ("protect", "forbid")}
    pairs = [(region, _rows(layout, region, sizes, rasters)) for region in regions]
    for region, rows in pairs:
        marks[region.rule][rows] = True
    protected, forbidden = marks["protect"], marks["forbid"] & ~marks["protect"]
    for region, rows in pairs:
        if region.rule == "forbid" and not forbidden[rows].any():
            raise RequestError(
                f"{region} has no effect: every visual token in it is protected by another region"
            )
    for image in range(1, len(sizes) + 1):
        spans = [number for number, span in enumerate(layout.spans) if span.image == image]
        if all(forbidden[layout.rows(span)].all() for span in spans):
            raise RequestError(
                f"forbidden regions cover every visual token of image {image}; leave some, or "
                f"ask without the image"
            )
    return layout.with_regions(protected=protected, forbidden=forbidden)


def overlapping_tokens(region: Region, raster: Raster) -> NDArray[np.int64]:
    """Return the ascending raster indices of the tokens that see a part of ``region``."""
    x0, y0, x1, y1 = raster.box
    token = ((x1 - x0) / raster.width, (y1 - y0) / raster.height)
    left, top, right, bottom = region.box
    columns = _overlap((left - x0) / token[0], (right - x0) / token[0], raster.width)
    rows = _overlap((top - y0) / token[1], (bottom - y0) / token[1], raster.height)
    indices = np.arange(raster.height * raster.width, dtype=np.int64)
    grid = indices.reshape(raster.height, raster.width)
    return grid[rows.start : rows.stop, columns.start : columns.stop].ravel()


def _overlap(start: float, end: float, num_tokens: int) -> range:
    """Return the tokens of one axis that overlap (start, end), in tokens."""
    first, beyond = math.floor(start + EPSILON), math.ceil(end - EPSILON)
    # Of a region before the raster neither end may be negative: slices would count from the end.
    return range(max(0, first), max(0, min(num_tokens, max(beyond, first + 1))))


def _rows(
    layout: Layout, region: Region, sizes: Sequence[tuple[int, int]], rasters: Sequence[Raster]
) -> NDArray[np.int64]:
    """Return the rows of the prompt that a region speaks of, in every tile that shows it."""
    if region.image > len(sizes):
        raise RequestError(f"{region} is of image {region.image}, but there are {len(sizes)}")
    width, height = sizes[region.image - 1]
    x0, y0, x1, y1 = region.box
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        raise RequestError(
            f"{region} is not within image {region.image}, which has {width} x {height} pixels"
        )
    found = [
        span.positions[overlapping_tokens(region, raster)]
        for span, raster in zip(layout.spans, rasters, strict=True)
        if raster.image == region.image
    ]
    rows = np.concatenate(found)
    if not len(rows):
        raise RequestError(
            f"{region} lies in a part of image {region.image} that the model does not see: it is "
            f"cropped before the vision encoder"
        )
    return rows
