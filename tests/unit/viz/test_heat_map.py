from __future__ import annotations

import numpy as np
from PIL import Image
from support.maps import map_of

from feather_edge.viz import Panel, contact_sheet, heat_map, kept_tokens
from feather_edge.viz.heat_map import GONE, colour_of

WHITE = Image.new("RGB", (8, 8), (255, 255, 255))


def test_brightness_rises_with_the_score() -> None:
    brightness = colour_of(np.linspace(0, 1, 20)).astype(int).sum(axis=1)
    assert (np.diff(brightness) > 0).all()


def test_high_scores_are_bright_and_gone_tokens_grey() -> None:
    scores = np.array([0.1, np.nan, 0.2, 0.7], np.float32)
    shown = np.asarray(heat_map(WHITE, scores, np.array([3]), tokens=map_of((2, 2), 80)))
    low, gone, middle, high = (shown[y, x] for y in (20, 60) for x in (20, 60))
    assert tuple(gone) == GONE
    assert int(low.sum()) < int(middle.sum()) < int(high.sum())


def test_kept_tokens_are_outlined() -> None:
    scores = np.arange(4, dtype=np.float32)
    shown = np.asarray(heat_map(WHITE, scores, np.array([3]), tokens=map_of((2, 2), 80)))
    assert tuple(shown[40, 60]) == (255, 255, 255)
    assert tuple(shown[60, 40]) == (255, 255, 255)
    assert tuple(shown[20, 40]) != (255, 255, 255)


def test_a_criterion_without_scores_says_so() -> None:
    shown = np.asarray(heat_map(WHITE, None, np.array([0]), tokens=map_of((2, 2), 200)))
    assert tuple(shown[190, 10]) == GONE
    assert (shown[95:105] == 255).any()


def test_lost_tokens_can_keep_their_shapes() -> None:
    red = Image.new("RGB", (8, 8), (200, 0, 0))
    shown = np.asarray(
        kept_tokens(red, [0], tokens=map_of((2, 2), 80), is_lost_visible=True)
    ).astype(int)
    assert tuple(shown[20, 20]) == (200, 0, 0)
    assert 10 < shown[60, 60, 1] < shown[60, 60, 0] < 100


def test_a_long_caption_ends_before_the_next_panel() -> None:
    panel = Panel(picture=Image.new("RGB", (60, 20)), title="a very long caption " * 5)
    empty = Panel(picture=Image.new("RGB", (60, 20)), title="")
    sheet = np.asarray(contact_sheet([[panel, empty]], heading="which?"))
    assert (sheet[-40:, 76:] == 255).all()
    assert (sheet[:34] < 100).any()


def test_bad_news_are_red() -> None:
    panel = Panel(picture=Image.new("RGB", (90, 20)), title="changed", is_alarming=True)
    colours = [colour for _, colour in contact_sheet([[panel]]).getcolors(maxcolors=100_000)]
    assert (190, 20, 30) in colours
    assert (24, 24, 24) not in colours
