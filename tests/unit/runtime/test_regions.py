"""Boxes in a picture and the visual tokens that see them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.image_processors import PROCESSORS, raw_config

from feather_edge.checkpoint.preprocessing import PreprocessConfig, preprocess_config
from feather_edge.errors import RequestError
from feather_edge.images import Raster, RasterImages
from feather_edge.images.pixels import model_view, view_geometry
from feather_edge.pruning import Layout, Region, VisualSpan
from feather_edge.runtime.regions import mark_regions, overlapping_tokens

NAMES = ("clip-small", "clip-crop-larger", "clip-square", "clip-crop-only", "llava-pad", "llava")


def spec(config: PreprocessConfig, patch: int) -> RasterImages:
    height, width = config.output_size
    return RasterImages(token_id=0, grid=(height // patch, width // patch), preprocess=config)


def raster(size: tuple[int, int], image: RasterImages) -> Raster:
    return image.prepare([Image.new("RGB", size)]).rasters[0]


def square(side: int, patch: int) -> RasterImages:
    """Pictures resized to a square, aspect ratio not kept."""
    raw = {**raw_config(PROCESSORS["siglip"]), "size": {"height": side, "width": side}}
    return spec(preprocess_config(raw), patch)


def tokens(region: Region, size: tuple[int, int], image: RasterImages) -> set[tuple[int, int]]:
    """The (row, column) of each token."""
    found = overlapping_tokens(region, raster(size, image))
    return {divmod(int(token), image.grid[1]) for token in found}


@given(
    name=st.sampled_from(NAMES),
    size=st.tuples(st.integers(20, 90), st.integers(20, 90)),
    corners=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_a_region_finds_the_tokens_that_its_paint_reaches(
    name: str, size: tuple[int, int], corners: tuple[float, ...]
) -> None:
    """Paint the box, let the picture go its way, and look which tokens got paint."""
    raw = {**raw_config(PROCESSORS[name]), "resample": 0}  # nearest: paint does not bleed
    image = spec(preprocess_config(raw), 4)
    (x0, x1), (y0, y1) = (
        sorted(round(c * extent) for c in pair)
        for pair, extent in ((corners[:2], size[0]), (corners[2:], size[1]))
    )
    if x0 == x1 or y0 == y1:
        return
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[y0:y1, x0:x1] = 255
    pad = image.preprocess.pad_color
    seen = np.asarray(model_view(Image.fromarray(pixels), image.preprocess))[..., 0]
    seen = np.where(seen == (pad[0] if pad else 1), 0, seen)
    painted = {
        (row, column)
        for row in range(image.grid[0])
        for column in range(image.grid[1])
        if seen[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].any()
    }
    region = Region(box=(x0, y0, x1, y1))

    if not painted:  # cropped away, or thinner than a pixel of the model's view
        return
    found = tokens(region, size, image)

    assert painted <= found
    for row, column in found - painted:  # only a sliver below one pixel can have got none
        assert any((row + y, column + x) in painted for y in (-1, 0, 1) for x in (-1, 0, 1))


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_picture_is_every_token_that_sees_some_of_it(name: str) -> None:
    config = preprocess_config(raw_config(PROCESSORS[name]))
    image = spec(config, 1)
    left, top, right, bottom = view_geometry((40, 60), config).to_view((0, 0, 40, 60))
    height, width = config.output_size

    found = tokens(Region(box=(0, 0, 40, 60)), (40, 60), image)

    assert found == {
        (y, x)
        for y in range(height)
        for x in range(width)
        if x + 1 > left + 1e-6 and x < right - 1e-6 and y + 1 > top + 1e-6 and y < bottom - 1e-6
    }


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 10, 10), {(0, 0)}),  # exactly one token, none of its neighbours
        ((10, 20, 30, 30), {(2, 1), (2, 2)}),
        ((9.9, 0, 10.1, 5), {(0, 0), (0, 1)}),
        ((39.99, 39.99, 40, 40), {(3, 3)}),
    ],
)
def test_borders_of_tokens(
    box: tuple[float, float, float, float], expected: set[tuple[int, int]]
) -> None:
    assert tokens(Region(box=box), (40, 40), square(56, 14)) == expected


def test_a_border_that_no_patch_covers() -> None:
    image = square(384, 14)  # 27 patches of 14 are 378

    assert image.grid == (27, 27)
    assert tokens(Region(box=(364, 0, 378, 14)), (384, 384), image) == {(0, 26)}
    assert not tokens(Region(box=(379, 0, 384, 384)), (384, 384), image)


def test_what_a_centre_crop_loses_is_said() -> None:
    image = spec(preprocess_config(raw_config(PROCESSORS["clip-small"])), 7)

    layout = Layout.full(16, [VisualSpan(start=0, height=image.grid[0], width=image.grid[1])])
    rasters = [raster((100, 50), image)]

    with pytest.raises(RequestError, match=r"protect region 0,0,20,50 lies in a part of image 1"):
        mark_regions(layout, [Region(box=(0, 0, 20, 50))], [(100, 50)], rasters)


# -- rows of the prompt -----------------------------------------------------------------------

IMAGE = square(56, 14)
LAYOUT = Layout.full(
    40,
    [VisualSpan(start=2, height=4, width=4), VisualSpan(start=20, height=4, width=4, image=2)],
)
SIZES = [(40, 40), (400, 400)]
RASTERS = IMAGE.prepare([Image.new("RGB", size) for size in SIZES]).rasters


def box(*corners: float, rule: str = "protect", image: int = 1) -> Region:
    return Region(box=corners, rule=rule, image=image)


def test_marks_are_rows_of_the_prompt() -> None:
    regions = [box(0, 0, 20, 10), box(300, 300, 400, 400, rule="forbid", image=2)]

    layout = mark_regions(LAYOUT, regions, SIZES, RASTERS)

    assert np.flatnonzero(layout.is_protected).tolist() == [2, 3]
    assert np.flatnonzero(layout.is_forbidden).tolist() == [35]


def test_a_shared_token_is_protected() -> None:
    regions = [box(0, 0, 15, 10), box(15, 0, 40, 10, rule="forbid")]

    layout = mark_regions(LAYOUT, regions, SIZES, RASTERS)

    assert np.flatnonzero(layout.is_protected).tolist() == [2, 3]
    assert np.flatnonzero(layout.is_forbidden).tolist() == [4, 5]


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([box(0, 0, 41, 10)], "protect region 0,0,41,10 is not within image 1, which has 40 x 40"),
        ([box(-1, 0, 4, 10)], "is not within image 1"),
        ([box(0, 0, 1, 1, image=3)], "protect region 0,0,1,1 is of image 3, but there are 2"),
        ([box(0, 0, 9, 9, rule="forbid"), box(0, 0, 5, 5)], "forbid region 0,0,9,9 has no effect"),
        ([box(0, 0, 400, 400, rule="forbid", image=2)], "every visual token of image 2; leave"),
    ],
)
def test_regions_that_cannot_be_met(regions: list[Region], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        mark_regions(LAYOUT, regions, SIZES, RASTERS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"box": (5, 0, 5, 9)}, "protect region 5,0,5,9 is empty; x0 must be less than x1"),
        ({"box": (5, 9, 6, 0)}, "is empty"),
        ({"box": (1, 2, 3)}, "protect region 1,2,3 needs four finite numbers"),
        ({"box": (0, 0, float("nan"), 1)}, "needs four finite numbers"),
        ({"box": (0, 0, 1, 1), "rule": "keep"}, "rule 'keep' is unknown; choose protect or"),
        ({"box": (0, 0, 1, 1), "image": 0}, "image 0 does not exist; they count from 1"),
    ],
)
def test_regions_that_make_no_sense(fields: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Region(**fields)


@pytest.mark.parametrize("left", [-300, -40, -1, 0, 2, 500])
def test_a_tile_beside_a_region_has_none_of_it(left: int) -> None:
    tile = Raster(height=4, width=4, box=(left + 10, 0, left + 10 + 8, 8))
    beside = Region(box=(0, 0, 8, 8)) if left >= 0 else Region(box=(20, 2, 24, 4))
    assert overlapping_tokens(beside, tile).tolist() == []
    turned = Raster(height=4, width=4, box=(0, left + 10, 8, left + 10 + 8))
    x0, y0, x1, y1 = beside.box
    assert overlapping_tokens(Region(box=(y0, x0, y1, x1)), turned).tolist() == []
