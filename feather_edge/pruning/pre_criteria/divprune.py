"""DivPrune (CVPR 2025, arXiv 2503.02175): the most diverse tokens, no look at the prompt.

Distance is one minus the cosine. The first token is the one whose nearest neighbour is farthest;
then, greedily, the one whose nearest *chosen* token is farthest. The published code moves the
kept tokens together; here they keep their positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from feather_edge.pruning.pre_criteria.tokens import ranks_of, unit_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feather_edge.pruning.pre_criteria.tokens import ImageTokens


def divprune(tokens: ImageTokens, num_kept: int) -> NDArray[np.float32]:
    """Return ranks [n] in the order of choice; K steps of O(n) after one product of O(n^2 D)."""
    unit = unit_rows(tokens.features)
    distances = 1 - unit @ unit.T
    np.fill_diagonal(distances, np.inf)  # a token is no neighbour of its own
    nearest = distances.min(axis=1)
    order = [int(nearest.argmax())]
    nearest = distances[order[0]].copy()
    while len(order) < num_kept:
        nearest[order[-1]] = -np.inf
        order.append(int(nearest.argmax()))
        np.minimum(nearest, distances[order[-1]], out=nearest)
    return ranks_of(order, len(unit))
