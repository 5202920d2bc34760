from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feather_edge.errors import RecipeError
from feather_edge.pruning import PruningSchedule


@st.composite
def schedules(draw: st.DrawFn) -> PruningSchedule:
    num_layers = draw(st.integers(1, 60))
    stages = draw(st.sets(st.integers(1, num_layers - 1))) if num_layers > 1 else set()
    return PruningSchedule(num_layers=num_layers, stages=tuple(sorted(stages)))


@given(schedules())
def test_segments_are_all_layers_in_order(schedule: PruningSchedule) -> None:
    layers = [layer for segment in schedule.segments for layer in segment.layers]

    assert layers == list(range(schedule.num_layers))
    assert sum(segment.num_layers for segment in schedule.segments) == schedule.num_layers


@given(schedules())
def test_every_stage_stands_before_a_segment(schedule: PruningSchedule) -> None:
    assert tuple(s.first_layer for s in schedule.segments[1:]) == schedule.stages


@pytest.mark.parametrize(
    ("num_layers", "stages"),
    [(32, (8, 16)), (28, (7, 14)), (8, (2, 4)), (4, (1, 2)), (2, (1,)), (1, ())],
)
def test_default_is_a_quarter_and_a_half(num_layers: int, stages: tuple[int, ...]) -> None:
    assert PruningSchedule.default(num_layers).stages == stages


def test_paper_segments() -> None:
    segments = PruningSchedule(num_layers=32, stages=(8, 16)).segments

    assert [(s.first_layer, s.last_layer) for s in segments] == [(0, 7), (8, 15), (16, 31)]


def test_no_stage_is_one_segment() -> None:
    (segment,) = PruningSchedule(num_layers=5).segments

    assert (segment.first_layer, segment.last_layer) == (0, 4)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((0,), "layer 0 is out of range; a decoder of 8 layers can prune before layers 1 to 7"),
        ((2, 8), "layer 8 is out of range"),
        ((-1, 3), "layer -1 is out of range"),
        ((4, 2), r"stages \(4, 2\) must be ascending and without repeats"),
        ((4, 4), "without repeats"),
    ],
)
def test_impossible_stages(stages: tuple[int, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        PruningSchedule(num_layers=8, stages=stages)


def test_default_stages_at_each_quarter() -> None:
    assert PruningSchedule.default(32, num_stages=1).stages == (8,)
    assert PruningSchedule.default(32, num_stages=3).stages == (8, 16, 24)
    assert PruningSchedule.default(28, num_stages=3).stages == (7, 14, 21)
    with pytest.raises(RecipeError, match="4 pruning stages have no default places; name the"):
        PruningSchedule.default(32, num_stages=4)
