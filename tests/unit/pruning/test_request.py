from __future__ import annotations

import pytest

from feather_edge.errors import RequestError
from feather_edge.pruning import CRITERION_NAMES, Layout, Pruning, VisualSpan, criterion
from feather_edge.pruning.request import MIN_VISUAL_TOKENS, unpruned_reason


def layout_of(*sides: int) -> Layout:
    end, spans = 1, []
    for side in sides:
        spans.append(VisualSpan(start=end, height=side, width=side))
        end += side * side
    return Layout.full(end + 1, spans)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_ratio": ()}, "keep ratio is empty; give one value, or one per pruning stage"),
        ({"keep_ratio": (0.0,)}, r"keep ratio 0.0 is out of range; it must be in \(0, 1\]"),
        ({"keep_ratio": (1.01,)}, "keep ratio 1.01 is out of range"),
        ({"keep_ratio": (0.5, -1.0)}, "keep ratio -1.0 is out of range"),
        ({"keep_ratio": (float("nan"),)}, "keep ratio nan is out of range"),
        ({"pre_keep_ratio": 0.0}, "keep ratio 0.0 is out of range"),
        ({"selection": "best"}, "selection 'best' is unknown; choose fill or union"),
        ({"stride": -1}, r"stride -1 must be 0 \(no grid\) or more"),
        ({"seed": -1}, "seed -1 must be 0 or more"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Pruning(**options)


def test_defaults_are_the_paper_s() -> None:
    pruning = Pruning()

    assert pruning.criterion == "feather"
    assert pruning.keep_ratio == (0.3,)  # R = 0.7
    assert pruning.stride == 3


@pytest.mark.parametrize(
    ("pruning", "sides", "num_stages", "reason"),
    [
        (Pruning(criterion="none"), [8], 2, "pruning is off"),
        (Pruning(), [8], 0, "the bundle was exported without pruning stages"),
        (Pruning(), [], 2, "the prompt has no image"),
        (Pruning(), [3], 2, "the prompt has only 9 visual tokens; fewer than 16 are not pruned"),
        (Pruning(), [4], 2, None),
        (Pruning(), [3, 3], 2, None),
        (Pruning(criterion="random"), [8], 1, None),
    ],
)
def test_why_nothing_is_pruned(
    pruning: Pruning, sides: list[int], num_stages: int, reason: str | None
) -> None:
    assert unpruned_reason(pruning, layout_of(*sides), num_stages) == reason


def test_the_bound_is_the_one_that_is_documented() -> None:
    assert MIN_VISUAL_TOKENS == 16


def test_criteria_by_name() -> None:
    assert CRITERION_NAMES == (
        "feather", "fastv", "fastv-full", "pyramiddrop", "pyramiddrop-reset", "ivc", "ivc-value",
        "uniform", "random", "none",
    )  # fmt: skip
    for name in CRITERION_NAMES[:-1]:
        assert criterion(name)


@pytest.mark.parametrize("name", ["none", "Feather", "divprune"])
def test_unknown_criterion(name: str) -> None:
    message = f"criterion '{name}' is unknown; choose feather, fastv, fastv-full, pyramiddrop,"
    with pytest.raises(RequestError, match=message):
        criterion(name)
