from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from feather_edge.checkpoint.preprocessing import PreprocessConfig
from feather_edge.errors import RequestError
from feather_edge.evaluate.answers import BoxReader, is_same_word
from feather_edge.images import ViewGeometry
from feather_edge.images.pixels import model_view, view_geometry

if TYPE_CHECKING:
    from support.bundles import BundleFactory

CONFIGS = {
    "crop": PreprocessConfig(resize_shortest_edge=60, crop_to=(56, 56)),
    "pad": PreprocessConfig(pad_color=(0, 0, 0), resize_to=(84, 84)),
    "stretch": PreprocessConfig(resize_to=(70, 49)),
    "smaller than the crop": PreprocessConfig(crop_to=(150, 170)),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("size", [(140, 90), (90, 140), (101, 101)])
def test_geometry_is_what_preprocessing_does(
    config: PreprocessConfig, size: tuple[int, int]
) -> None:
    image = Image.new("RGB", size)
    middle = (size[0] // 2 - 8, size[1] // 2 - 12, size[0] // 2 + 16, size[1] // 2 + 10)
    image.paste((255, 255, 255), middle)
    view = np.asarray(model_view(image, config).convert("L")) > 127
    rows, columns = np.nonzero(view)
    seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    geometry = view_geometry(size, config)
    assert geometry.view_size == view.shape[::-1]
    assert np.allclose(geometry.to_view(middle), seen, atol=1)
    assert np.allclose(geometry.to_image(geometry.to_view(middle)), middle)


@pytest.mark.parametrize(
    ("reader", "text", "box"),
    [
        (BoxReader(box_format="pixels"), "[1, 2, 30.5, 40]", (1, 2, 30.5, 40)),
        (
            BoxReader(box_format="pixels"),
            '```json\n[{"bbox_2d": [1, 2, 30, 40], "label": "cup"}]\n```',
            (1, 2, 30, 40),
        ),
        (BoxReader(box_format="pixels"), "x1=1 y1=-.5 x2=30 y2=40", (1, -0.5, 30, 40)),
        (BoxReader(box_format="0-1"), "It is at (0.1, .2, 0.5, 1.0)", (20, 20, 100, 100)),
        (BoxReader(box_format="0-100"), "10 20 50 100", (20, 20, 100, 100)),
        (BoxReader(box_format="0-1000"), "100 200 500 1000", (20, 20, 100, 100)),
        (
            BoxReader(box_format="location-tokens", num_bins=10),
            "<loc_0> <loc_1> <loc_4> <loc_9>",
            (10, 15, 90, 95),
        ),
        (
            BoxReader(box_format="location-tokens", num_bins=10),
            "<loc0001><loc0000><loc0009><loc0004> cup",
            (10, 15, 90, 95),
        ),
        (
            BoxReader(box_format="location-tokens", num_bins=10),
            "<loc0001><loc0000><loc0009><loc0004>",
            (10, 15, 90, 95),
        ),
        (BoxReader(box_format="pixels"), '{"bbox_2d": [1, 2, 30, 40]}', (1, 2, 30, 40)),
        (BoxReader(box_format="0-1000"), "<box>(100,200),(500,1000)</box>", (20, 20, 100, 100)),
        (BoxReader(box_format="pixels"), "[1, 2, 3, 4] [5, 6, 7, 8]", None),
        (BoxReader(box_format="0-1"), "0.1 0.2 0.3", None),
        (BoxReader(box_format="pixels"), "nowhere", None),
        (BoxReader(box_format="location-tokens", num_bins=10), "1 2 3 4", None),
    ],
)
def test_boxes_are_read_as_the_model_writes_them(
    reader: BoxReader, text: str, box: tuple[float, ...] | None
) -> None:
    geometry = ViewGeometry(scale=(1, 1), offset=(0, 0), view_size=(200, 100))
    said = reader.read(text, geometry)
    assert said == (None if box is None else pytest.approx(box))


def test_a_model_without_location_tokens_needs_a_format(bundles: BundleFactory) -> None:
    bundle = bundles().bundle
    assert BoxReader.of(bundle) is None
    assert BoxReader.of(bundle, "0-1000") == BoxReader(box_format="0-1000")
    with pytest.raises(RequestError, match="no location tokens such as <loc_07>.*0-1, 0-100 or"):
        BoxReader.of(bundle, "location-tokens")
    with pytest.raises(RequestError, match="box format 'corners' is unknown; choose location-"):
        BoxReader.of(bundle, "corners")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "truth", "same"),
    [("Red.", "red", True), (" a  cup ", "a cup", True), ("3", "30", False), ("", "no", False)],
)
def test_words_are_compared_whole(said: str, truth: str, same: bool) -> None:
    assert is_same_word(said, truth) is same
