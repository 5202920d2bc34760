"""Sizes of tiles, cuts and scaled rasters are those of transformers, for pictures of any shape."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.models.llava_next.modeling_llava_next import unpad_image

from feather_edge.checkpoint.preprocessing import PreprocessConfig
from feather_edge.errors import RequestError
from feather_edge.images import AnyresImages, ImageSpec
from feather_edge.images.anyres import _bilinear

SIDES = (1, 2, 3, 4, 5, 6)
NEXT = AnyresImages(
    token_id=9,
    grid=(24, 24),
    canvases=((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)),
    preprocess=PreprocessConfig(resize_to=(336, 336)),
)
ONEVISION = AnyresImages(
    token_id=9,
    grid=(27, 27),
    canvases=tuple((384 * rows, 384 * columns) for rows in SIDES for columns in SIDES),
    preprocess=PreprocessConfig(resize_to=(384, 384)),
    max_tiles=9,
    among_others=PreprocessConfig(resize_to=(384, 384), pad_color=(122, 116, 104)),
)
EXTENTS = st.one_of(st.integers(1, 3000), st.integers(1, 40))


@pytest.mark.parametrize("images", [NEXT, ONEVISION], ids=["next", "onevision"])
@given(height=EXTENTS, width=EXTENTS)
@example(height=336, width=336)
@example(height=1, width=3000)
def test_a_picture_is_cut_as_in_transformers(
    images: AnyresImages, height: int, width: int
) -> None:
    size = (height, width)
    canvas = select_best_resolution(size, [list(canvas) for canvas in images.canvases])
    blank = np.empty((*size, 3), np.uint8)
    tile, grid = images.preprocess.output_size[0], images.grid[0]
    stitched = torch.empty(1, canvas[0] // tile * grid, canvas[1] // tile * grid)

    fit = images.fit((width, height))

    assert fit.tiles == (canvas[0] // tile, canvas[1] // tile)
    assert fit.resized == tuple(get_patch_output_size(blank, canvas, "channels_last"))
    assert fit.seen == tuple(unpad_image(stitched, size).shape[1:])


@pytest.mark.parametrize(
    ("extent", "size"), [((30, 41), (27, 29)), ((7, 5), (6, 4)), ((9, 2), (3, 1))]
)
def test_scaling_is_that_of_torch(extent: tuple[int, int], size: tuple[int, int]) -> None:
    features = np.random.default_rng(0).normal(size=(*extent, 8)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(features).permute(2, 0, 1)[None], list(size), mode="bilinear"
    )[0].permute(1, 2, 0)

    rows, weights = _bilinear(np.arange(np.prod(extent)).reshape(extent), size)

    mixed = (features.reshape(-1, 8)[rows] * weights[..., None]).sum(axis=2)
    np.testing.assert_allclose(mixed, expected.numpy(), atol=1e-5)


def test_a_raster_that_would_scale_to_nothing_is_refused() -> None:
    images = msgspec.structs.replace(ONEVISION, grid=(2, 2), max_tiles=1)
    with pytest.raises(
        RequestError, match=r"image of 4000 x 500 pixels is too elongated: the model"
    ):
        images.fit((4000, 500))


@pytest.mark.parametrize("images", [NEXT, ONEVISION], ids=["next", "onevision"])
def test_the_manifest_says_it_all(images: AnyresImages) -> None:
    document = msgspec.json.encode(images)
    assert b'"layout":"anyres"' in document
    assert msgspec.json.decode(document, type=ImageSpec) == images


def test_the_vision_encoder_takes_any_picture_and_several_usual_ones() -> None:
    assert NEXT.typical_grids == ((24, 24), (36, 48))
    assert NEXT.vision_dims(2304) == {"num_images": (1, 5, 5)}
    assert NEXT.vision_dims(7000) == {"num_images": (1, 5, 15)}
    assert ONEVISION.vision_dims(3000) == {"num_images": (1, 5, 37)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": [0, 24]}, "a grid has"),
        ({"canvases": [[336, 700]]}, "is no 1 to 64 tiles of"),
        ({"canvases": [[336 * 65, 336]]}, "is no 1 to 64 tiles of"),
        ({"canvases": []}, "there must be a canvas"),
        ({"max_tiles": 0}, "max_tiles must be 1 or more"),
    ],
)
def test_what_no_manifest_means_is_refused(change: dict[str, object], message: str) -> None:
    document = {**msgspec.to_builtins(NEXT), **change}
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(document, ImageSpec)
