from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.selection import (
    reference_keep_count,
    reference_stage1,
    reference_stride_indices,
    reference_top_k,
)

from feather_edge.pruning.selection import (
    ALWAYS,
    NEVER,
    chosen_priority,
    fill_priority,
    keep_count,
    stride_grid,
    top_k,
    top_k_uniform_gather,
    union_size_if_independent,
)

# Few distinct values, so that ties are the rule; NaN and infinities now and then.
tied_scores = hnp.arrays(
    np.float32,
    st.integers(1, 80),
    elements=st.sampled_from([0.0, -0.0, 0.25, 0.5, 1.0, -3.0, np.nan, np.inf, -np.inf]),
)


@pytest.mark.parametrize(
    ("num_tokens", "keep_ratio", "expected"),
    [
        (729, 1 - 0.7, 218),
        (729, 0.3, 218),
        (729, 0.25, 182),
        (100, 1 - 0.9, 10),  # 0.0999... in binary
        (576, 0.5, 288),
        (196, 0.3, 58),
        (10, 0.01, 1),  # never none
        (1, 0.5, 1),
        (7, 1.0, 7),
    ],
)
def test_keep_count(num_tokens: int, keep_ratio: float, expected: int) -> None:
    assert keep_count(num_tokens, keep_ratio) == expected


@given(st.integers(1, 5000), st.floats(1e-6, 1.0))
def test_keep_count_is_the_reference_but_never_none(num_tokens: int, keep_ratio: float) -> None:
    count = keep_count(num_tokens, keep_ratio)

    assert count == max(1, reference_keep_count(num_tokens, keep_ratio))
    assert 1 <= count <= num_tokens


@given(st.integers(1, 3000), st.floats(1e-6, 1.0), st.floats(1e-6, 1.0))
def test_keep_count_does_not_fall_with_the_ratio(num_tokens: int, a: float, b: float) -> None:
    low, high = sorted((a, b))

    assert keep_count(num_tokens, low) <= keep_count(num_tokens, high)


@given(tied_scores, st.integers(-3, 90))
def test_top_k_is_the_reference(scores: np.ndarray, num_kept: int) -> None:
    kept = top_k(scores, num_kept)

    assert kept.dtype == np.int64
    np.testing.assert_array_equal(kept, reference_top_k(scores, num_kept))


@given(tied_scores, st.integers(1, 80))
def test_top_k_one_by_one(scores: np.ndarray, num_kept: int) -> None:
    """The slowest definition there is: take the first of the best, again and again."""
    left = {index: -np.inf if np.isnan(s) else float(s) for index, s in enumerate(scores)}
    taken = []
    while left and len(taken) < num_kept:
        best = min(index for index in left if left[index] == max(left.values()))
        taken.append(best)
        del left[best]

    assert top_k(scores, num_kept).tolist() == sorted(taken)


def test_top_k_gives_ties_to_the_lowest_index() -> None:
    assert top_k(np.ones(9), 4).tolist() == [0, 1, 2, 3]
    assert top_k([0.5, 1.0, 0.5, 1.0, 0.5], 3).tolist() == [0, 1, 3]


def test_top_k_ranks_nan_last() -> None:
    assert top_k([np.nan, 0.1, np.nan, -5.0], 2).tolist() == [1, 3]
    assert top_k([np.nan, np.nan, np.nan], 2).tolist() == [0, 1]


@pytest.mark.parametrize("num_kept", [3, 4, 1000])
def test_top_k_of_all_is_the_identity(num_kept: int) -> None:
    assert top_k([3.0, 1.0, 2.0], num_kept).tolist() == [0, 1, 2]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(-1, 45))
def test_grid_is_the_reference(height: int, width: int, stride: int) -> None:
    grid = stride_grid(height, width, stride)

    assert grid.dtype == np.int64
    np.testing.assert_array_equal(grid, reference_stride_indices(height, width, stride))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 45))
def test_grid_is_every_stride_th_row_and_column(height: int, width: int, stride: int) -> None:
    expected = [
        y * width + x
        for y in range(height)
        for x in range(width)
        if y % stride == 0 and x % stride == 0
    ]

    assert stride_grid(height, width, stride).tolist() == expected


def test_published_grids() -> None:
    assert len(stride_grid(27, 27, 3)) == 81
    assert len(stride_grid(27, 27, 2)) == 196
    assert len(stride_grid(27, 27, 0)) == 0


def test_published_size_of_fill() -> None:
    assert union_size_if_independent(729, 218, 81) == 275


@given(st.data(), st.integers(1, 900))
def test_size_of_fill_lies_between_the_extremes_of_the_union(
    data: st.DataObject, num_tokens: int
) -> None:
    num_top = data.draw(st.integers(1, num_tokens))
    num_grid = data.draw(st.integers(0, num_tokens))

    size = union_size_if_independent(num_tokens, num_top, num_grid)

    assert max(num_top, num_grid) <= size <= min(num_tokens, num_top + num_grid)


@given(st.data(), st.integers(1, 12), st.integers(1, 12), st.integers(0, 5))
def test_fill_is_the_reference(data: st.DataObject, height: int, width: int, stride: int) -> None:
    num_tokens = height * width
    num_kept = data.draw(st.integers(1, num_tokens))
    scores = data.draw(
        hnp.arrays(np.float32, num_tokens, elements=st.sampled_from([0.0, 0.125, 0.5, 1.0]))
    )
    priority = fill_priority(
        stride_grid(height, width, stride), num_tokens=num_tokens, num_kept=num_kept
    )

    (kept,) = top_k_uniform_gather(scores, priority, num_kept)

    expected = reference_stage1(scores, height, width, st=stride, mode="fill", budget=num_kept)
    np.testing.assert_array_equal(kept, expected)


def test_fill_keeps_the_whole_grid_when_it_fits() -> None:
    grid = stride_grid(9, 9, 3)
    priority = fill_priority(grid, num_tokens=81, num_kept=20)

    kept = top_k(np.zeros(81, np.float32) + priority, 20)

    assert set(grid) <= set(kept)


def test_fill_keeps_the_best_of_a_grid_that_is_too_large() -> None:
    grid = stride_grid(9, 9, 3)
    scores = np.linspace(0, 1, 81, dtype=np.float32)
    priority = fill_priority(grid, num_tokens=81, num_kept=4)

    assert top_k(scores + priority, 4).tolist() == grid[-4:].tolist()


@given(st.data(), st.integers(1, 60))
def test_chosen_are_kept_whatever_the_scores(data: st.DataObject, num_tokens: int) -> None:
    chosen = data.draw(st.sets(st.integers(0, num_tokens - 1)))
    scores = data.draw(hnp.arrays(np.float32, num_tokens, elements=st.floats(0, 1, width=32)))
    priority = chosen_priority(np.array(sorted(chosen), np.int64), num_tokens=num_tokens)

    assert top_k(scores + priority, len(chosen)).tolist() == sorted(chosen)


def test_priorities_are_exact_in_float16() -> None:
    assert float(np.float16(ALWAYS)) == ALWAYS
    assert float(np.float16(NEVER)) == NEVER


def test_gather_takes_the_same_rows_of_every_tensor() -> None:
    hidden = np.arange(12.0).reshape(4, 3)
    table = np.arange(4)

    kept, rows, entries = top_k_uniform_gather(
        [0.1, 0.9, 0.3, 0.2], [0, NEVER, 0, ALWAYS], 2, hidden, table
    )

    assert kept.tolist() == [2, 3]
    assert rows.tolist() == hidden[2:].tolist()
    assert entries.tolist() == [2, 3]
