from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feather_edge.errors import RequestError
from feather_edge.pruning import Layout, Pruning, StagePlan, VisualSpan
from feather_edge.pruning.plan import stage_quotas, stage_ratios
from feather_edge.pruning.selection import ALWAYS, top_k

TWO = Layout.full(
    12, [VisualSpan(start=1, height=2, width=2), VisualSpan(start=6, height=1, width=5)]
)


def plan_for(layout: Layout, quotas: tuple[int, ...], **options: object) -> StagePlan:
    return StagePlan(quotas=quotas, **options)


def test_text_stays_and_each_image_has_its_quota() -> None:
    scores = np.array([0, 1, 2, 3, 4, 0, 9, 8, 7, 6, 5, 0], np.float32)

    kept = plan_for(TWO, (1, 2)).select(scores, TWO)

    assert kept.tolist() == [0, 4, 5, 6, 7, 11]


def test_union_adds_the_grid_without_repeats() -> None:
    grid = np.zeros(12, np.bool_)
    grid[[1, 4]] = True
    scores = np.array([0, 1, 2, 3, 4, 0, 9, 8, 7, 6, 5, 0], np.float32)

    kept = plan_for(TWO, (1, 1), preferred=grid, is_union=True).select(scores, TWO)

    assert kept.tolist() == [0, 1, 4, 5, 6, 11]


def test_nan_scores_go_first_and_ties_to_the_lowest_row() -> None:
    scores = np.full(12, 0.5, np.float32)
    scores[[1, 2, 7]] = np.nan

    kept = plan_for(TWO, (2, 4)).select(scores, TWO)

    assert kept.tolist() == [0, 3, 4, 5, 6, 8, 9, 10, 11]


@given(st.data(), st.integers(1, 6), st.integers(1, 6), st.integers(0, 3), st.integers(0, 3))
def test_one_top_k_does_what_select_does(
    data: st.DataObject, height: int, width: int, before: int, after: int
) -> None:
    """What a graph computes with the plan's inputs is the plan's own definition."""
    num_rows = before + height * width + after
    layout = Layout.full(num_rows, [VisualSpan(start=before, height=height, width=width)])
    plan = plan_for(layout, (data.draw(st.integers(1, height * width)),))
    scores = np.array(
        data.draw(
            st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=num_rows, max_size=num_rows)
        ),
        np.float32,
    )

    assert not plan.needs_host
    rows = top_k(scores + plan.priority(layout), plan.num_kept(layout))
    np.testing.assert_array_equal(rows, plan.select(scores, layout))


def test_when_the_host_has_to_choose() -> None:
    grid = np.zeros(12, np.bool_)

    assert plan_for(TWO, (1, 1)).needs_host  # a quota per image
    assert plan_for(TWO, (1, 1), preferred=grid, is_union=True).needs_host
    assert not plan_for(TWO, (1, 1), ranks=np.zeros(12, np.float32)).needs_host


def test_priority_of_text_is_always() -> None:
    priority = plan_for(TWO, (2, 2)).priority(TWO)

    assert priority.dtype == np.float32
    assert not priority[TWO.is_visual].any()
    assert set(priority[~TWO.is_visual]) == {ALWAYS}


def test_one_ratio_belongs_to_the_first_stage() -> None:
    assert list(stage_ratios(Pruning(keep_ratio=(0.5,)), 3)) == [0.5, 0.5, 0.5]
    assert list(stage_ratios(Pruning(keep_ratio=(0.5, 0.2)), 2)) == [0.5, 0.2]


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ((0.5, 0.2), r"2 values, but this bundle has 3 pruning stage\(s\); give 1 value or 3"),
        ((0.2, 0.5, 0.1), "must not rise from one stage to the next"),
    ],
)
def test_ratios_that_do_not_fit_the_stages(ratios: tuple[float, ...], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        stage_ratios(Pruning(keep_ratio=ratios), 3)


@given(st.floats(1e-6, 1.0), st.lists(st.integers(1, 12), min_size=1, max_size=3))
def test_no_image_starves(ratio: float, sides: list[int]) -> None:
    end, spans = 0, []
    for side in sides:
        spans.append(VisualSpan(start=end, height=side, width=side))
        end += side * side
    layout = Layout.full(end, spans)

    quotas = stage_quotas(Pruning(keep_ratio=(ratio,)), 0, 1, layout)

    for quota, side in zip(quotas, sides, strict=True):
        assert 1 <= quota <= side * side


def test_quota_is_a_share_of_what_was_there_before_pruning() -> None:
    layout = Layout.full(100, [VisualSpan(start=0, height=10, width=10)])
    pruned = layout.keep(np.arange(40))
    pruning = Pruning(keep_ratio=(0.4, 0.1))

    assert stage_quotas(pruning, 1, 2, pruned) == (10,)


def test_quota_is_at_most_what_is_left() -> None:
    layout = Layout.full(100, [VisualSpan(start=0, height=10, width=10)])

    assert stage_quotas(Pruning(keep_ratio=(0.5,)), 1, 2, layout.keep(np.arange(7))) == (7,)
