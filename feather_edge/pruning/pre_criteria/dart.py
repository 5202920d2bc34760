"""DART (EMNLP 2025, arXiv 2502.11494): drop what duplicates a few pivots. Embedding-level variant.

Pivots are the four visual and the four text tokens of the largest L1 norm. Each in turn keeps an
equal share of the visual tokens that are least like it, by cosine, among those still left; the
visual pivots are kept themselves.

The published method runs after the second layer and takes the norms of its keys. Before the
decoder there are no keys: norms and cosines are those of the embeddings, as in the variant that
TensorRT Edge-LLM ships. Shares are made to add up to the quota; the published ones leave a
remainder of up to seven tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from feather_edge.pruning.pre_criteria.tokens import ranks_of, unit_rows
from feather_edge.pruning.selection import top_k

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feather_edge.pruning.pre_criteria.tokens import ImageTokens

NUM_PIVOTS = 4
"""Of either kind."""


def dart(tokens: ImageTokens, num_kept: int) -> NDArray[np.float32]:
    """Return ranks [n] in the order in which pivots choose."""
    unit = unit_rows(tokens.features)
    pivots = top_k(np.abs(tokens.features).sum(axis=1), min(NUM_PIVOTS, num_kept))
    text_pivots = top_k(np.abs(tokens.text).sum(axis=1), NUM_PIVOTS)
    directions = np.concatenate([unit[pivots], unit_rows(tokens.text[text_pivots])])
    cosines = directions @ unit.T  # [pivots, n]
    order = pivots.tolist()
    cosines[:, pivots] = np.inf
    bounds = np.arange(len(directions) + 1) * (num_kept - len(order)) // len(directions)
    for row, share in zip(cosines, np.diff(bounds), strict=True):
        chosen = top_k(-row, int(share))
        order += chosen.tolist()
        cosines[:, chosen] = np.inf
    return ranks_of(order, len(unit))
