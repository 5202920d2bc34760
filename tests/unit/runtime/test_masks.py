"""Masks of kept rows are those of the full prompt, with the pruned rows left out."""

from __future__ import annotations

import numpy as np
import pytest

from feather_edge.pruning import Layout, VisualSpan
from feather_edge.runtime.masks import prompt_mask, step_mask

SPANS = (
    VisualSpan(start=2, height=2, width=2),
    VisualSpan(start=8, height=1, width=3, row_gap=1, image=2),
)
NUM_ROWS = 14


def reference_mask(attention: str, window: int | None) -> np.ndarray:
    """The mask of the full prompt, pair by pair."""
    spans = dict.fromkeys(range(2, 6), 0) | dict.fromkeys(range(8, 11), 1)
    mask = np.zeros((NUM_ROWS, NUM_ROWS), np.bool_)
    for query in range(NUM_ROWS):
        for key in range(NUM_ROWS):
            is_one_picture = query in spans and spans.get(key) == spans[query]
            sees = key <= query or (attention == "images" and is_one_picture)
            is_within = window is None or query - key < window
            mask[query, key] = attention == "prefix" or (sees and is_within)
    return mask


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("attention", ["causal", "images", "prefix"])
def test_a_pruned_token_does_not_widen_a_window(attention: str, window: int | None) -> None:
    kept = np.array([0, 1, 3, 5, 6, 7, 8, 10, 11, 12, 13])
    full = Layout.full(NUM_ROWS, SPANS)
    expected = reference_mask(attention, window)

    assert np.array_equal(prompt_mask(full, attention, window=window), expected)
    pruned = prompt_mask(full.keep(kept), attention, window=window)
    assert np.array_equal(pruned, expected[np.ix_(kept, kept)])


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("attention", ["causal", "images"])
@pytest.mark.parametrize("num_past", [1, 2])
def test_rows_after_cached_ones_see_what_they_would_have_seen(
    attention: str, window: int | None, num_past: int
) -> None:
    kept = np.array([0, 1, 3, 5, 6, 7, 8, 10, 11, 12, 13])
    rest = Layout.full(NUM_ROWS, SPANS).keep(kept[num_past:])

    mask = prompt_mask(rest, attention, past=kept[:num_past], window=window)

    expected = reference_mask(attention, window)[np.ix_(kept[num_past:], kept)]
    assert np.array_equal(mask, expected)


def test_a_new_token_counts_positions_too() -> None:
    slots = np.array([0, 1, 5, 9, 10])

    assert step_mask(10, slots).tolist() == [[True] * 5]
    assert step_mask(10, slots, window=6).tolist() == [[False, False, True, True, True]]
    assert step_mask(10, slots, window=5).tolist() == [[False, False, False, True, True]]
