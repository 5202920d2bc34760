"""IVC-Prune's own score (ICLR 2026, arXiv 2602.03060): likeness of value vectors.

Attention carries the rotary embedding's taste for near positions; values are not rotated. In the
layer before the stage each text row after the picture spreads a softmax over the picture's tokens
by the products of their values, mean over the key/value heads. The hundredth of the tokens that
text finds likest are *seeds*, which ask in the same way; a token's score is the mean over all who
asked. Seeds are kept before all others, behind the coordinate tokens (see ``ivc``).

The published code applies one choice, made at one layer, to the caches of all layers; here it
holds from the stage on, as for every criterion. It skips the two rows after the picture, which
belong to one model's template; here every text row after the last picture asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from feather_edge.pruning.selection import keep_count, top_k

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feather_edge.pruning.layout import Layout

SEED_SHARE = 0.01
"""Share of an image's tokens, at least one, that ask beside the text."""


def value_scores(values: NDArray[np.float32], layout: Layout) -> NDArray[np.float32]:
    """Return the scores [S] of rows by their ``values`` [Hkv, S, Dh]; seeds lie above 1.

    Images are scored one by one; text rows get 0.
    """
    text = np.flatnonzero(~layout.is_visual)
    after = text[text > np.flatnonzero(layout.is_visual).max(initial=-1)]
    asking = after if len(after) else text
    scores = np.zeros(layout.num_rows, np.float32)
    for number in range(len(layout.spans)):
        rows = layout.rows(number)
        by_text = _likeness(values, asking, rows)
        seeds = rows[top_k(by_text.mean(axis=0), keep_count(len(rows), SEED_SHARE))]
        asked = np.concatenate([by_text, _likeness(values, seeds, rows)])
        scores[rows] = asked.mean(axis=0)
        scores[seeds] += 1
    return scores


def _likeness(
    values: NDArray[np.float32], asking: NDArray[np.int64], rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return a softmax over ``rows`` [n] for each row of ``asking``, mean over heads [Q, n]."""
    products = values[:, asking] @ values[:, rows].transpose(0, 2, 1)
    products /= np.sqrt(values.shape[-1])
    weights = np.exp(products - products.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    likeness: NDArray[np.float32] = weights.mean(axis=0)
    return likeness
