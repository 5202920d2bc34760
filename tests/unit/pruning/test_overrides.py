"""What is asked for in vain is refused, what a recipe carries is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from feather_edge.errors import RequestError
from feather_edge.pruning import CRITERION_NAMES, Layout, Pruning, VisualSpan, criterion
from feather_edge.pruning.overrides import override, override_each

CARRIED = Pruning(stride=5, selection="union", keep_ratio=(0.4,), pre_keep_ratio=0.2)


@pytest.mark.parametrize("name", CRITERION_NAMES)
def test_what_a_recipe_carries_is_never_refused(name: str) -> None:
    assert override(CARRIED, criterion=name).stride == 5
    assert override(CARRIED, criterion=name, pre_criterion="dart").pre_keep_ratio == 0.2


@pytest.mark.parametrize(
    ("asked", "option", "reason"),
    [
        ({"criterion": "fastv", "stride": 2}, "stride 2", "fastv has no grid; choose feather, or"),
        (
            {"criterion": "random", "selection": "union"},
            "selection union",
            "choose feather or ivc",
        ),
        ({"stride": 0, "selection": "union"}, "selection union", "stride 0 is no grid that could"),
        ({"criterion": "none", "keep_ratio": (0.5, 0.25)}, "keep-ratio 0.5,0.25", "keeps every"),
        ({"pre_keep_ratio": 0.25}, "pre-keep-ratio 0.25", "choose what does with --pre-prune"),
    ],
)
def test_what_is_asked_in_vain(asked: dict[str, Any], option: str, reason: str) -> None:
    with pytest.raises(RequestError) as error:
        override(Pruning(), **asked)
    assert str(error.value).startswith(f"{option} has no effect: ")
    assert reason in str(error.value)
    assert str(error.value).endswith(", or leave it out")


@pytest.mark.parametrize(
    "asked",
    [
        {"criterion": "fastv", "stride": 0},
        {"criterion": "fastv", "selection": "fill"},
        {"criterion": "none", "keep_ratio": (1.0,)},
        {"criterion": "ivc", "selection": "union"},
        {"criterion": "uniform", "keep_ratio": (0.5,), "seed": 3},
        {"pre_criterion": "dart", "pre_keep_ratio": 0.5},
    ],
)
def test_what_happens_as_asked_is_not_in_vain(asked: dict[str, Any]) -> None:
    effective = override(Pruning(), **asked)
    assert {name: getattr(effective, name) for name in asked} == asked


def test_one_of_several_criteria_must_heed_an_option() -> None:
    fastv, feather = Pruning(criterion="fastv"), Pruning()
    assert [each.stride for each in override_each([fastv, feather], stride=2)] == [2, 2]
    with pytest.raises(RequestError, match="stride 2 has no effect: criterion fastv has no grid"):
        override_each([fastv, Pruning(criterion="ivc")], stride=2)


def test_an_unknown_criterion_is_left_to_the_session() -> None:
    assert override(Pruning(), criterion="best", stride=2).criterion == "best"


@pytest.mark.parametrize("name", CRITERION_NAMES[:-1])
def test_criteria_heed_exactly_the_options_that_they_name(name: str) -> None:
    span = VisualSpan(start=1, height=9, width=9)
    layout = Layout.full(90, [span], angles=np.arange(90)[:, None] * [0.5, 0.1])
    others = {"stride": 2, "selection": "union", "seed": 7}
    plain = _plan_of(name, layout)
    changed = {
        option
        for option, value in others.items()
        if _plan_of(name, layout, **{option: value}) != plain
    }
    assert changed == set(criterion(name).options)


def _plan_of(name: str, layout: Layout, **options: Any) -> tuple[object, ...]:
    pruning = Pruning(criterion=name, **options)
    plan = criterion(name).plan(pruning, 0, 2, layout)
    return (plan.quotas, plan.is_union, plan.priority(layout).tolist())
