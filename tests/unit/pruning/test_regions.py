"""What protected and forbidden rows do to every criterion, quota and selection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feather_edge.pruning import CRITERION_NAMES, Layout, Pruning, VisualSpan, criterion
from feather_edge.pruning.selection import top_k

if TYPE_CHECKING:
    from feather_edge.pruning import StagePlan

CRITERIA = CRITERION_NAMES[:-1]
SIDE = 8
NUM_ROWS = 70


def layout_with(protected: set[int], forbidden: set[int]) -> Layout:
    """One image of 64 tokens from row 2 on."""
    span = VisualSpan(start=2, height=SIDE, width=SIDE)
    angles = np.arange(NUM_ROWS)[:, None] * np.array([1.0, 0.3, 0.01])
    layout = Layout.full(NUM_ROWS, [span], angles=angles)
    marks = []
    for tokens in (protected, forbidden):
        marks.append(np.zeros(NUM_ROWS, np.bool_))
        marks[-1][[2 + token for token in tokens]] = True
    return layout.with_regions(protected=marks[0], forbidden=marks[1])


def reference_choice(
    plan: StagePlan, scores: np.ndarray, protected: set[int], forbidden: set[int]
) -> list[int]:
    """One by one: the protected, then the preferred, then by rank, never a forbidden one."""
    ranks = scores if plan.ranks is None else plan.ranks
    is_preferred = np.zeros(NUM_ROWS, bool) if plan.preferred is None else plan.preferred
    order = sorted(
        set(range(SIDE * SIDE)) - forbidden,
        key=lambda t: (
            t not in protected,
            not (is_preferred[2 + t] and not plan.is_union),
            -ranks[2 + t],
            t,
        ),
    )
    chosen = set(order[: max(plan.quotas[0], len(protected))])
    if plan.is_union:
        chosen |= {t for t in range(SIDE * SIDE) if is_preferred[2 + t]} - forbidden
    return sorted(chosen)


@given(
    name=st.sampled_from(CRITERIA),
    ratio=st.sampled_from([0.05, 0.15, 0.3, 0.9, 1.0]),
    selection=st.sampled_from(["fill", "union"]),
    protected=st.sets(st.integers(0, 63)),
    forbidden=st.sets(st.integers(0, 63), max_size=60),
    seed=st.integers(0, 99),
)
def test_every_criterion_honours_regions(  # noqa: PLR0917 - drawn by name
    name: str, ratio: float, selection: str, protected: set[int], forbidden: set[int], seed: int
) -> None:
    forbidden -= protected
    if len(forbidden) == SIDE * SIDE:
        return
    layout = layout_with(protected, forbidden)
    pruning = Pruning(criterion=name, keep_ratio=(ratio,), selection=selection)
    plan = criterion(name).plan(pruning, 0, 2, layout)
    scores = np.random.default_rng(seed).random(NUM_ROWS, np.float32)

    kept = layout.keep(plan.select(scores, layout))

    assert kept.kept_indices.tolist() == reference_choice(plan, scores, protected, forbidden)
    assert protected <= set(kept.kept_indices)
    assert not forbidden & set(kept.kept_indices)
    assert np.count_nonzero(~kept.is_visual) == NUM_ROWS - SIDE * SIDE
    if not plan.needs_host:  # what a graph computes with the plan's inputs
        rows = top_k(scores + plan.priority(layout), plan.num_kept(layout))
        assert layout.keep(rows).positions.tolist() == kept.positions.tolist()
        assert kept.num_kept == plan.quotas[0] + plan.quota_change(layout)


@pytest.mark.parametrize("name", CRITERIA)
def test_protected_tokens_survive_all_stages(name: str) -> None:
    protected = {0, 9, 27, 63}
    layout = layout_with(protected, {1, 2})
    pruning = Pruning(criterion=name, keep_ratio=(0.3, 0.02))

    for stage in range(2):
        plan = criterion(name).plan(pruning, stage, 2, layout)
        scores = np.linspace(1, 0, layout.num_rows, dtype=np.float32)
        change = plan.quota_change(layout)
        layout = layout.keep(plan.select(scores, layout))

    assert set(layout.kept_indices) == protected
    assert change == 3  # the second stage's own count is one


def test_forbidden_tokens_can_leave_fewer_than_the_quota() -> None:
    layout = layout_with(set(), set(range(60)))
    plan = criterion("fastv").plan(Pruning(criterion="fastv", keep_ratio=(0.5,)), 0, 1, layout)

    assert plan.quotas_within(layout) == (4,)
    assert plan.quota_change(layout) == 4 - 32
