from __future__ import annotations

import numpy as np

from feather_edge.images import Raster, ViewGeometry
from feather_edge.viz import token_maps
from feather_edge.viz.token_map import NO_TOKEN

VIEW = ViewGeometry(scale=(2.0, 2.0), offset=(0, 0), view_size=(40, 20))
"""Of a picture of 20 x 10 pixels, drawn at 40."""


def test_a_thumbnail_and_tiles_are_two_maps() -> None:
    whole = Raster(height=1, width=2, box=(0, 0, 20, 10))
    tiles = [
        Raster(height=1, width=1, box=(0, 0, 10, 10)),
        Raster(height=2, width=1, box=(10, 0, 20, 10)),
    ]
    first, second = token_maps([whole, *tiles], VIEW, size=40)
    assert first.indices.tolist() == [0, 1]
    assert second.indices.tolist() == [2, 3, 4]
    assert np.unique(first.pixels[:, :20]).tolist() == [0]
    assert np.unique(second.pixels[:, :20]).tolist() == [2]
    assert second.pixels[9, 39] == 3
    assert second.pixels[10, 39] == 4


def test_tokens_of_padding_are_counted_and_not_drawn() -> None:
    raster = Raster(height=4, width=1, box=(5, -10, 15, 10))  # half of it above the picture
    (tokens,) = token_maps([raster], VIEW, size=40)
    assert len(tokens.indices) == 4
    assert set(np.unique(tokens.pixels)) == {NO_TOKEN, 2, 3}
    assert (tokens.pixels[:, :10] == NO_TOKEN).all()
    assert (tokens.pixels[:, 30:] == NO_TOKEN).all()
