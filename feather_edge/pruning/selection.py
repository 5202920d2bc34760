"""Choosing rows: the numpy reference of ``feather::TopKUniformGather``, and the uniform grid.

Letters: S rows of the sequence, n visual tokens, K kept rows.

One rule everywhere: the K best of ``scores + priority``, ties to the lowest index, returned in
ascending order. Everything a method wants besides its score (the uniform grid, text rows, random
choices, protected regions) is said through the priority.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

ALWAYS = 1e4
"""Priority of a row that is kept whatever its score: text, the uniform grid."""

NEVER = -1e4
"""Priority of a row that goes first. Both are exact in float16 and far beyond any score."""


def keep_count(num_tokens: int, keep_ratio: float) -> int:
    """Return how many of ``num_tokens`` a ratio keeps: ``max(1, floor(keep_ratio * num_tokens))``.

    The 1e-6 repairs ratios such as ``1 - 0.9 = 0.0999...``, which would lose a token to rounding.
    """
    return min(num_tokens, max(1, math.floor(num_tokens * keep_ratio + 1e-6)))


def top_k(scores: ArrayLike, num_kept: int) -> NDArray[np.int64]:
    """Return the ascending indices of the ``num_kept`` largest ``scores`` [n].

    Ties go to the lowest index and NaN ranks last, so the result is a function of the input alone.
    """
    values = np.asarray(scores, dtype=np.float32)
    values = np.where(np.isnan(values), -np.inf, values)
    order = np.argsort(-values, kind="stable")
    return np.sort(order[: max(0, min(len(values), num_kept))])


def top_k_uniform_gather(
    scores: ArrayLike, priority: ArrayLike, num_kept: int, *tensors: NDArray[np.generic]
) -> tuple[NDArray[np.generic], ...]:
    """Keep the best rows of several tensors: what the graphs' custom op computes.

    Args:
        scores: [S], higher is kept.
        priority: [S], added to the scores (see ``ALWAYS`` and ``NEVER``).
        num_kept: K.
        tensors: each [S, ...].

    Returns:
        ``kept_indices`` [K] int64 ascending, then every tensor as [K, ...].
    """
    rows = top_k(np.asarray(scores, np.float32) + np.asarray(priority, np.float32), num_kept)
    return (rows, *(tensor[rows] for tensor in tensors))


def stride_grid(height: int, width: int, stride: int) -> NDArray[np.int64]:
    """Return the raster indices of every ``stride``-th row and column, from (0, 0).

    FEATHER's uniform set U (paper section 4.1); 27 x 27 tokens at stride 3 give 81. A stride of 0
    means no grid.
    """
    if stride <= 0:
        return np.empty(0, np.int64)
    rows, columns = np.meshgrid(
        np.arange(0, height, stride), np.arange(0, width, stride), indexing="ij"
    )
    return (rows * width + columns).ravel().astype(np.int64)


def union_size_if_independent(num_tokens: int, num_top: int, num_grid: int) -> int:
    """Return the mean size of ``top-k U grid`` when score and place are independent.

    The paper keeps a union, whose size depends on the picture; ``fill`` keeps this constant
    number instead, so both cost the same on average. 729 tokens, 218 and 81 give 275.
    """
    if num_tokens == 0:  # a tile whose tokens are all gone
        return 0
    return min(num_tokens, round(num_top + num_grid * (1 - num_top / num_tokens)))


def fill_priority(
    grid: NDArray[np.int64], *, num_tokens: int, num_kept: int
) -> NDArray[np.float32]:
    """Return priorities [n] that keep the grid first and fill up with the best of the rest.

    When the grid alone is larger than ``num_kept``, the best-scored part of it is kept.
    """
    if num_kept <= len(grid):
        priority = np.full(num_tokens, NEVER, np.float32)
        priority[grid] = 0.0
    else:
        priority = np.zeros(num_tokens, np.float32)
        priority[grid] = ALWAYS
    return priority


def chosen_priority(chosen: NDArray[np.int64], *, num_tokens: int) -> NDArray[np.float32]:
    """Return priorities [n] that keep exactly ``chosen``, whatever the scores."""
    priority = np.full(num_tokens, NEVER, np.float32)
    priority[chosen] = ALWAYS
    return priority
