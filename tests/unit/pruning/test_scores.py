from __future__ import annotations

import numpy as np
import pytest
from support.selection import reference_scores

from feather_edge.pruning import Layout, VisualSpan
from feather_edge.pruning.scores import MASKED, attention_scores, rotate, score_mask

LAYOUT = Layout.full(
    14, [VisualSpan(start=2, height=2, width=2), VisualSpan(start=8, height=1, width=3)]
)


def random_heads(num_heads: int, num_rows: int, head_dim: int, *, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((num_heads, num_rows, head_dim)).astype(np.float32)


def identity(num_rows: int, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    shape = (num_rows, head_dim // 2)
    return np.ones(shape, np.float32), np.zeros(shape, np.float32)


def test_mask_shows_visual_tokens_only_or_everything() -> None:
    mask = score_mask(LAYOUT, "visual")

    assert mask.dtype == np.float32
    assert np.flatnonzero(mask == 0).tolist() == [2, 3, 4, 5, 8, 9, 10]
    assert set(mask[~LAYOUT.is_visual]) == {np.float32(MASKED)}
    assert not score_mask(LAYOUT, "sequence").any()


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_rope_free_score_is_the_reference(kv_heads: int) -> None:
    rng = np.random.default_rng(kv_heads)
    heads, head_dim, width = 4, 6, 16
    x = rng.standard_normal((LAYOUT.num_rows, width))
    norm = rng.standard_normal(width)
    wq = rng.standard_normal((heads * head_dim, width))
    wk = rng.standard_normal((kv_heads * head_dim, width))
    normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * norm
    queries = (normed @ wq.T).reshape(-1, heads, head_dim).transpose(1, 0, 2)
    keys = (normed @ wk.T).reshape(-1, kv_heads, head_dim).transpose(1, 0, 2)

    scores = attention_scores(
        queries,
        keys,
        *identity(LAYOUT.num_rows, head_dim),
        score_mask(LAYOUT, "visual"),
    )

    rows = np.flatnonzero(LAYOUT.is_visual)
    expected = reference_scores(x, norm, wq, wk, heads, kv_heads, -1, rows)
    np.testing.assert_allclose(scores[rows], expected, rtol=1e-4, atol=1e-6)
    assert scores.dtype == np.float32


@pytest.mark.parametrize("domain", ["visual", "sequence"])
def test_scores_are_a_mean_of_softmaxes(domain: str) -> None:
    scores = attention_scores(
        random_heads(4, 14, 8, seed=0),
        random_heads(2, 14, 8, seed=1),
        *identity(14, 8),
        score_mask(LAYOUT, domain),
    )

    assert scores.sum() == pytest.approx(1, abs=1e-6)
    hidden = scores[~LAYOUT.is_visual]
    assert (hidden == 0).all() if domain == "visual" else (hidden > 0).all()


def test_the_two_softmax_domains_rank_differently() -> None:
    """A head that looks at text counts in full with one, hardly with the other."""
    queries = np.zeros((2, 14, 2), np.float32)
    keys = np.zeros((2, 14, 2), np.float32)
    queries[:, -1] = [1.0, 0.0]
    keys[0, 2, 0], keys[0, 0, 0] = 5.0, 12.0  # head 0: row 2 best of the picture, text far above
    keys[1, 3, 0] = 2.0  # head 1: row 3, mildly

    visual, sequence = (
        attention_scores(queries, keys, *identity(14, 2), score_mask(LAYOUT, domain))
        for domain in ("visual", "sequence")
    )

    assert np.argmax(visual) == 2
    assert np.argmax(np.where(LAYOUT.is_visual, sequence, 0)) == 3


def test_only_the_last_row_asks() -> None:
    queries, keys = random_heads(2, 14, 4, seed=2), random_heads(2, 14, 4, seed=3)
    rest = (*identity(14, 4), score_mask(LAYOUT, "visual"))
    before = attention_scores(queries, keys, *rest)
    queries[:, :-1] += 100

    np.testing.assert_array_equal(attention_scores(queries, keys, *rest), before)


def test_huge_logits_stay_finite() -> None:
    huge = 1e18 * random_heads(2, 14, 4, seed=4)

    scores = attention_scores(huge, huge, *identity(14, 4), score_mask(LAYOUT, "visual"))

    assert np.isfinite(scores).all()


def test_rotation_by_identity_tables_changes_nothing() -> None:
    x = random_heads(2, 5, 6, seed=5)

    np.testing.assert_array_equal(rotate(x, *identity(5, 6)), x)


def test_rotation_depends_on_the_distance_alone() -> None:
    rng = np.random.default_rng(6)
    query, key = rng.standard_normal((2, 1, 8)).astype(np.float32)
    frequencies = np.array([1.0, 0.3, 0.1, 0.02], np.float32)

    def product(at: int, other: int) -> float:
        tables = [np.array([[p]], np.float32) * frequencies for p in (at, other)]
        q = rotate(query, np.cos(tables[0]), np.sin(tables[0]))
        k = rotate(key, np.cos(tables[1]), np.sin(tables[1]))
        return float((q * k).sum())

    assert product(9, 4) == pytest.approx(product(105, 100), abs=1e-4)
    assert product(9, 4) != pytest.approx(product(9, 5), abs=1e-4)
