from __future__ import annotations

import numpy as np
from PIL import Image
from support.maps import map_of

from feather_edge.viz import Panel, contact_sheet, kept_tokens


def test_kept_tokens_stay_bright_and_the_rest_is_dimmed() -> None:
    picture = Image.new("RGB", (8, 4), (200, 100, 50))
    shown = np.asarray(kept_tokens(picture, np.array([0, 7]), tokens=map_of((2, 4), 80)))
    assert shown.shape == (40, 80, 3)
    assert tuple(shown[5, 5]) == (200, 100, 50)
    assert tuple(shown[35, 75]) == (200, 100, 50)
    assert tuple(shown[5, 75]) == (32, 16, 8)


def test_boxes_are_drawn_in_the_pictures_own_pixels() -> None:
    picture = Image.new("RGB", (10, 10))
    every = np.arange(4)
    shown = np.asarray(
        kept_tokens(picture, every, tokens=map_of((2, 2), 100), boxes=[((2, 2, 8, 8), "#ff0000")])
    )
    assert tuple(shown[20, 50]) == (255, 0, 0)
    assert tuple(shown[50, 50]) == (0, 0, 0)


def test_an_inverted_box_is_left_out() -> None:
    picture = Image.new("RGB", (10, 10))
    shown = kept_tokens(
        picture, np.arange(4), tokens=map_of((2, 2), 100), boxes=[((8, 8, 2, 2), "#ff0000")]
    )
    assert not np.asarray(shown).any()


def test_a_contact_sheet_holds_every_panel_and_its_captions() -> None:
    red, blue = (Image.new("RGB", (50, 50), colour) for colour in ("#ff0000", "#0000ff"))
    panels = [Panel(picture=red, title="first"), Panel(picture=blue, title="second")]
    sheet = contact_sheet([panels, panels[:1]])
    colours = [colour for _, colour in sheet.getcolors(maxcolors=100_000)]
    assert {(255, 0, 0), (0, 0, 255), (24, 24, 24)} <= set(colours)
    assert sheet.width > 100
    assert sheet.height > 2 * 50
