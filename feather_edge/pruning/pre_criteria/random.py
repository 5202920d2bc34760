"""Random: tokens drawn without replacement, before the decoder. The baseline to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from feather_edge.pruning.pre_criteria.tokens import ranks_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feather_edge.pruning.pre_criteria.tokens import ImageTokens


def random(tokens: ImageTokens, num_kept: int) -> NDArray[np.float32]:
    """Return ranks [n] of a random subset, the same for the same seed."""
    num_tokens = len(tokens.features)
    order = np.random.default_rng(tokens.seed).permutation(num_tokens)
    return ranks_of(order[:num_kept].tolist(), num_tokens)
