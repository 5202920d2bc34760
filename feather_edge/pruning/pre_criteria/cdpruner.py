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
    """Return ranks [n] in the order of choice; K steps of O(K n)."""
    relevance = _relevance(tokens)
    unit = unit_rows(tokens.features).astype(np.float64)
    kernel = relevance[:, None] * (unit @ unit.T) * relevance
    volume = kernel.diagonal().copy()
    factor = np.zeros((num_kept, len(unit)))
    order: list[int] = []
    while len(order) < num_kept:
        best = int(volume.argmax())
        if volume[best] <= NO_VOLUME:
            break
        step = len(order)
        factor[step] = kernel[best] - factor[:step, best] @ factor[:step]
        factor[step] /= np.sqrt(volume[best])
        volume -= factor[step] ** 2
        volume[order] = volume[best] = -np.inf
        order.append(best)
    left = np.setdiff1d(np.argsort(-relevance, kind="stable"), order, assume_unique=True)
    return ranks_of([*order, *left.tolist()], len(unit))


def _relevance(tokens: ImageTokens) -> NDArray[np.float64]:
    """Return the mean cosine [n] to the text, from 0 for the least relevant to 1 for the most."""
    if not len(tokens.text):
        return np.ones(len(tokens.features))
    cosines = unit_rows(tokens.features) @ unit_rows(tokens.text).T
    relevance = cosines.mean(axis=1, dtype=np.float64)
    spread = relevance.max() - relevance.min()
    if not spread > 0:
        return np.ones(len(relevance))
    scaled: NDArray[np.float64] = (relevance - relevance.min()) / spread
    return scaled
