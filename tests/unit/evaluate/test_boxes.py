from __future__ import annotations

import pytest

from feather_edge.evaluate.boxes import intersection_over_union, parse_location_tokens


def test_location_tokens_stand_for_the_middle_of_their_bins() -> None:
    box = parse_location_tokens(
        "<loc_00> <loc_01> <loc_02> <loc_27>", num_bins=28, image_size=(112, 56)
    )
    assert box == pytest.approx((1.0, 6.0, 5.0, 110.0))


@pytest.mark.parametrize("label", ["", " red cup"])
def test_paligemma_names_rows_first_and_then_what_it_is(label: str) -> None:
    text = f"<loc0256><loc0128><loc0768><loc1023>{label}"
    box = parse_location_tokens(text, num_bins=1024, image_size=(1024, 2048))
    assert box == pytest.approx((257.0, 256.5, 2047.0, 768.5))


def test_two_boxes_of_paligemma_are_no_box() -> None:
    one = "<loc0256><loc0128><loc0768><loc1023> cup"
    assert parse_location_tokens(f"{one} ; {one}", num_bins=1024, image_size=(9, 9)) is None


@pytest.mark.parametrize(
    "text", ["", "red", "<loc_01> <loc_02> <loc_03>", "<loc_01><loc_02><loc_03><loc_04> red"]
)
def test_anything_but_four_location_tokens_is_no_box(text: str) -> None:
    assert parse_location_tokens(text, num_bins=28, image_size=(112, 112)) is None


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
        ((0, 0, 2, 2), (1, 0, 3, 2), 1 / 3),
        ((0, 0, 1, 1), (2, 2, 3, 3), 0.0),
        ((2, 2, 0, 0), (0, 0, 2, 2), 0.0),  # inverted: covers nothing
        ((1, 1, 1, 1), (1, 1, 1, 1), 0.0),
    ],
)
def test_intersection_over_union(
    first: tuple[float, ...], second: tuple[float, ...], expected: float
) -> None:
    assert intersection_over_union(first, second) == pytest.approx(expected)
