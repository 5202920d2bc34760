"""Arrangements of tiles are those of transformers, for pictures of any shape."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from feather_edge.checkpoint.preprocessing import PreprocessConfig
from feather_edge.images import ImageSpec, TiledImages

EXTENTS = st.one_of(st.integers(1, 5000), st.integers(1, 40))


def images(*, min_tiles: int = 1, max_tiles: int = 12) -> TiledImages:
    return TiledImages(
        token_id=9,
        grid=(16, 16),
        preprocess=PreprocessConfig(resize_to=(448, 448)),
        min_tiles=min_tiles,
        max_tiles=max_tiles,
        before="<img>",
        after="</img>",
    )


@pytest.mark.parametrize(("fewest", "most"), [(1, 12), (1, 1), (3, 7), (5, 5)])
@given(height=EXTENTS, width=EXTENTS)
@example(height=448, width=448)
@example(height=1000, width=1000)
def test_arrangements_are_those_of_transformers(
    fewest: int, most: int, height: int, width: int
) -> None:
    columns, rows = get_optimal_tiled_canvas((height, width), (448, 448), fewest, most)

    found = images(min_tiles=fewest, max_tiles=most).arrangement((width, height))

    assert found == (rows, columns)


def test_the_manifest_says_it_all() -> None:
    document = msgspec.json.encode(images())
    assert b'"layout":"tiled"' in document
    assert msgspec.json.decode(document, type=ImageSpec) == images()


def test_the_vision_encoder_takes_as_many_tiles_as_there_are_tokens_for() -> None:
    assert images().typical_grids == ((16, 16),) * 13  # 4 x 3 tiles and a thumbnail
    assert images().vision_dims(4000) == {"num_images": (1, 13, 15)}
    assert images(max_tiles=1).vision_dims(1024) == {"num_images": (1, 1, 4)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": [16, 2000]}, "a side must be 1 to 1024"),
        ({"min_tiles": 0}, "a picture has 0 to 12 tiles; allowed are 1 to 1024"),
        ({"min_tiles": 13}, "a picture has 13 to 12 tiles"),
        ({"preprocess": {"resize_to": [448, 0]}}, "is not 1 to 8192"),
    ],
)
def test_what_no_manifest_means_is_refused(change: dict[str, object], message: str) -> None:
    document = {**msgspec.to_builtins(images()), **change}
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(document, ImageSpec)
