"""CDPruner (NeurIPS 2025, arXiv 2506.10967): diverse tokens that matter to the prompt.

A determinantal point process with the kernel ``diag(r) S diag(r)``: S are the cosines of the
features, r the relevance, scaled to 0 .. 1. The set is built greedily, each step taking the token
that raises the determinant most (fast greedy MAP by an incremental Cholesky factor).

The published code measures relevance with CLIP's own text encoder, which a bundle does not have.
As in OpenVINO GenAI's port it is the mean cosine to the embeddings of the prompt's text, chat
template included. Features span at most D directions; tokens beyond them add no volume and are
ranked by relevance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from feather_edge.pruning.pre_criteria.tokens import ranks_of, unit_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feather_edge.pruning.pre_criteria.tokens import ImageTokens

NO_VOLUME = 1e-10
"""A token's share of volume, of at most 1, below which it is rounding."""


def cdpruner(tokens: ImageTokens, num_kept: int) -> NDArray[np.float32]:
    """Return ranks [n] in the order of choice; K steps of O(K n) after one product of O(n^2 D)."""
    unit = unit_rows(tokens.features)
    relevance = _relevance(unit, tokens.text)
    # Doubles: with single precision the rounding of the cosines changes picks of real pictures.
    kernel = unit.astype(np.float64)
    kernel = kernel @ kernel.T
    kernel *= relevance
    kernel *= relevance[:, None]
    order = greedy_map(kernel, num_kept)
    left = np.setdiff1d(np.argsort(-relevance, kind="stable"), order, assume_unique=True)
    return ranks_of([*order, *left.tolist()], len(unit))


def greedy_map(kernel: NDArray[np.float64], num_kept: int) -> list[int]:
    """Return at most ``num_kept`` tokens in the order in which they raise the determinant most.

    Row t of the Cholesky factor is that of the t-th pick, over all tokens, so each step is one
    product of a vector with the contiguous rows before.
    """
    volume = kernel.diagonal().copy()
    factor = np.empty((num_kept, len(kernel)))
    squares = np.empty(len(kernel))
    order: list[int] = []
    for step, row in enumerate(factor):
        best = int(volume.argmax())
        if volume[best] <= NO_VOLUME:
            break
        np.dot(factor[:step, best].copy(), factor[:step], out=row)
        np.subtract(kernel[best], row, out=row)
        np.divide(row, np.sqrt(volume[best]), out=row)
        volume -= np.square(row, out=squares)
        volume[best] = -np.inf
        order.append(best)
    return order


def _relevance(unit: NDArray[np.float32], text: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mean cosine [n] to the text, from 0 for the least relevant to 1 for the most."""
    if not len(text):
        return np.ones(len(unit))
    cosines = unit @ unit_rows(text).T
    relevance = cosines.mean(axis=1, dtype=np.float64)
    spread = relevance.max() - relevance.min()
    if not spread > 0:
        return np.ones(len(relevance))
    scaled: NDArray[np.float64] = (relevance - relevance.min()) / spread
    return scaled
