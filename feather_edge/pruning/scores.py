"""The score, written out in numpy: what the graphs compute and tests compare with.

Letters: S rows, H query heads, Hkv key heads, Dh head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feather_edge.pruning.layout import Layout
    from feather_edge.pruning.plan import ScoreDomain

MASKED = -1e9
"""Added to a logit that the softmax must not see; finite, so that no row of logits is all -inf."""


def score_mask(layout: Layout, domain: ScoreDomain) -> NDArray[np.float32]:
    """Return the additive mask [S] of the score's softmax: visual tokens only, or every row."""
    if domain == "sequence":
        return np.zeros(layout.num_rows, np.float32)
    return np.where(layout.is_visual, np.float32(0), np.float32(MASKED))


def rotate(
    x: NDArray[np.float32], cos: NDArray[np.float32], sin: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Apply rotary embedding to ``x`` [..., S, Dh], halves paired, tables [S, Dh / 2]."""
    low, high = np.split(x, 2, axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def attention_scores(
    queries: NDArray[np.float32],
    keys: NDArray[np.float32],
    cos: NDArray[np.float32],
    sin: NDArray[np.float32],
    mask: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return the attention [S] of the last row to every row, mean over heads, in float32.

    FEATHER section 4.1 with identity tables (cos 1, sin 0) and a visual mask; FastV with the real
    tables. No causal mask: the last row sees everything.

    Args:
        queries: [H, S, Dh], before rotary embedding. Only the last row is used.
        keys: [Hkv, S, Dh], before rotary embedding.
        cos: [S, Dh / 2] table used for scoring.
        sin: [S, Dh / 2] table used for scoring.
        mask: [S], additive, see ``score_mask``.
    """
    groups = queries.shape[0] // keys.shape[0]
    query = rotate(queries[:, -1:].astype(np.float32), cos[-1:], sin[-1:])
    key = np.repeat(rotate(keys.astype(np.float32), cos, sin), groups, axis=0)
    logits = (query @ key.transpose(0, 2, 1))[:, 0] / np.sqrt(queries.shape[-1]) + mask
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = weights / weights.sum(axis=-1, keepdims=True)
    scores: NDArray[np.float32] = probabilities.mean(axis=0, dtype=np.float32)
    return scores
