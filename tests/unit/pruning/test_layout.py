from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.selection import reference_build_keep

from feather_edge.errors import RequestError
from feather_edge.pruning import Layout, VisualSpan
from feather_edge.pruning.layout import TEXT


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Text before, between and after images of any shape; each part may be empty."""
    end = draw(st.integers(0, 6))
    spans = []
    for _ in range(draw(st.integers(0, 3))):
        height, width = draw(st.integers(1, 5)), draw(st.integers(1, 5))
        spans.append(VisualSpan(start=end, height=height, width=width))
        end += height * width + draw(st.integers(0, 4))
    return Layout.full(end, spans)


@given(layouts())
def test_full_layout(layout: Layout) -> None:
    assert layout.positions.tolist() == list(range(layout.num_rows))
    assert layout.num_kept == layout.num_visual_tokens
    assert layout.kept_indices.tolist() == list(range(layout.num_visual_tokens))
    for number, span in enumerate(layout.spans):
        assert layout.rows(number).tolist() == list(
            range(span.start, span.start + span.num_tokens)
        )
        assert layout.raster(number).tolist() == list(range(span.num_tokens))
    num_text = np.count_nonzero(layout.span_of_row == TEXT)
    assert num_text + layout.num_visual_tokens == layout.num_rows


@given(layouts(), st.data())
def test_pruned_layout_keeps_text_order_and_positions(layout: Layout, data: st.DataObject) -> None:
    kept = [
        np.array(sorted(data.draw(st.sets(st.integers(0, span.num_tokens - 1)))), np.int64)
        for span in layout.spans
    ]
    spans = [(span.start, span.num_tokens) for span in layout.spans]
    rows = reference_build_keep(layout.num_rows, spans, kept)

    pruned = layout.keep(rows)

    np.testing.assert_array_equal(pruned.positions, rows)  # values of the full prompt, gaps stay
    assert np.all(np.diff(pruned.positions) > 0)
    assert np.count_nonzero(~pruned.is_visual) == np.count_nonzero(~layout.is_visual)
    for number in range(len(spans)):
        np.testing.assert_array_equal(pruned.raster(number), kept[number])
    offsets = np.cumsum([0, *(n for _, n in spans)])
    expected = [k + o for k, o in zip(kept, offsets, strict=False)]
    assert pruned.kept_indices.tolist() == np.concatenate([[], *expected]).astype(int).tolist()
    assert pruned.num_visual_tokens == layout.num_visual_tokens


@given(layouts(), st.data())
def test_pruning_twice_still_names_original_positions(layout: Layout, data: st.DataObject) -> None:
    def some_rows(of: Layout) -> np.ndarray:
        dropped = data.draw(st.sets(st.sampled_from(np.flatnonzero(of.is_visual).tolist())))
        return np.array([row for row in range(of.num_rows) if row not in dropped], np.int64)

    if not layout.num_visual_tokens:
        return
    once = layout.keep(some_rows(layout))
    if not once.num_kept:
        return
    rows = some_rows(once)

    np.testing.assert_array_equal(once.keep(rows).positions, once.positions[rows])


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(0, 2, 2), (3, 2, 2)], "after the span before it, which ends at 4"),
        ([(4, 2, 2), (0, 2, 2)], "after the span before it"),
        ([(8, 2, 2)], "must lie within the prompt of 10 rows"),
    ],
)
def test_spans_that_do_not_fit(spans: list[tuple[int, int, int]], message: str) -> None:
    made = [VisualSpan(start=s, height=h, width=w) for s, h, w in spans]

    with pytest.raises(RequestError, match=message):
        Layout.full(10, made)


@pytest.mark.parametrize("fields", [(-1, 1, 1), (0, 0, 1), (0, 1, 0)])
def test_empty_span(fields: tuple[int, int, int]) -> None:
    start, height, width = fields

    with pytest.raises(RequestError, match="must start at 0 or later and not be empty"):
        VisualSpan(start=start, height=height, width=width)
