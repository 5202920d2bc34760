"""Figures: what is drawn is to scale."""

from __future__ import annotations

import pytest

from feather_edge.deploy.figures import BAR_HEIGHT, STEP_HEIGHT, WIDTH, bar_chart, step_chart


def test_steps_are_to_scale() -> None:
    chart = step_chart([4, 2, 2], [196, 98, 49], most=196)
    assert [step.width for step in chart.steps] == [WIDTH / 2, WIDTH / 4, WIDTH / 4]
    assert [step.height for step in chart.steps] == [200, 100, 50]
    assert all(step.y + step.height == STEP_HEIGHT for step in chart.steps)
    assert [step.layers for step in chart.steps] == ["layers 0 to 3", "layers 4 to 5",
                                                     "layers 6 to 7"]  # fmt: skip
    assert step_chart([1, 1], [4, 2], most=4).steps[1].layers == "layer 1"


def test_bars_are_on_one_scale() -> None:
    chart = bar_chart({"unpruned": {"vision": 5.0, "other": 5.0}, "pruned": {"vision": 5.0,
                       "other": -1e-12}})  # fmt: skip
    first, second = chart.bars
    assert (first.length, second.length) == (WIDTH, WIDTH / 2)
    assert [part.x for part in first.parts] == [0, WIDTH / 2]
    assert second.parts[1].width == 0  # what is left of a sum is never drawn to the left
    assert second.y - first.y > BAR_HEIGHT
    assert chart.names == ("vision", "other")


@pytest.mark.parametrize(("ms", "label"), [(50.0, "50"), (1.0, "")])
def test_a_number_needs_room(ms: float, label: str) -> None:
    assert bar_chart({"a": {"vision": ms, "other": 100.0}}).bars[0].parts[0].label == label
