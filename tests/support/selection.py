"""A literal, loop-free port of FEATHER's selection, written once from the method's description.

The reference that ``feather_edge.pruning`` is compared with; it imports nothing from it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "reference_build_keep",
    "reference_keep_count",
    "reference_scores",
    "reference_stage1",
    "reference_stage2",
    "reference_stride_indices",
    "reference_top_k",
]


def reference_keep_count(n: int, keep: float) -> int:
    """How many of n tokens a share keeps; 1e-6 repairs 1 - 0.9."""
    return max(0, min(n, math.floor(n * keep + 1e-6)))


def reference_top_k(s: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k best, ascending; ties to the lowest index, NaN last."""
    s = np.where(np.isnan(s), -np.inf, s.astype(np.float32))
    k = max(0, min(len(s), k))
    return np.sort(np.argsort(-s, kind="stable")[:k])


def reference_stride_indices(h: int, w: int, st: int) -> np.ndarray:
    """Raster indices of every st-th row and column."""
    if st <= 0:
        return np.empty(0, np.int64)
    r, c = np.meshgrid(np.arange(0, h, st), np.arange(0, w, st), indexing="ij")
    return (r * w + c).ravel()


def reference_scores(  # noqa: PLR0917 - the method's own symbols
    x: np.ndarray,
    ln_w: np.ndarray,
    wq: np.ndarray,
    wk: np.ndarray,
    heads: int,
    kv_heads: int,
    q_row: int,
    img_rows: np.ndarray,
) -> np.ndarray:
    """RoPE-free attention [image rows] of row q_row; x [S, D] enters layer K - 1."""
    x = x[np.r_[q_row, img_rows]]
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * ln_w
    q = (y[:1] @ wq.T).reshape(heads, -1)
    k = np.repeat((y[1:] @ wk.T).reshape(len(img_rows), kv_heads, -1), heads // kv_heads, axis=1)
    z = np.einsum("hd,nhd->hn", q, k) / np.sqrt(q.shape[1])
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return p.mean(0)


def reference_stage1(
    score: np.ndarray,
    h: int,
    w: int,
    *,
    keep: float = 0.3,
    st: int = 3,
    mode: Literal["union", "fill"] = "union",
    budget: int | None = None,
) -> np.ndarray:
    """Kept raster indices of the first stage."""
    n, u = h * w, reference_stride_indices(h, w, st)
    if mode == "union":
        return np.union1d(reference_top_k(score, reference_keep_count(n, keep)), u)
    b = n if budget is None else max(0, min(n, budget))
    if b <= len(u):
        return np.sort(u[reference_top_k(score[u], b)])
    s = score.copy()
    s[u] = np.inf
    return reference_top_k(s, b)


def reference_stage2(score: np.ndarray, *, keep: float = 0.09, min_keep: int = 1) -> np.ndarray:
    """Kept indices into the survivors of the first stage."""
    n = len(score)
    k = max(min(min_keep, n), reference_keep_count(n, keep))
    return reference_top_k(score, min(n, k))


def reference_build_keep(
    seq_len: int, spans: Sequence[tuple[int, int]], kept: Sequence[np.ndarray]
) -> np.ndarray:
    """Rows that stay, for spans (start, length) and what is kept of each."""
    m = np.ones(seq_len, bool)
    for (s, n), loc in zip(spans, kept, strict=True):
        m[s : s + n] = False
        m[s + loc] = True
    return np.flatnonzero(m)
