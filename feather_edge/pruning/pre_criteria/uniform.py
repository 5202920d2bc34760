"""Uniform: evenly spread tokens, before the decoder. See ``criteria.uniform`` for the order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from feather_edge.pruning.criteria.uniform import bayer_rank

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feather_edge.pruning.pre_criteria.tokens import ImageTokens


def uniform(tokens: ImageTokens, num_kept: int) -> NDArray[np.float32]:  # noqa: ARG001 - nested
    """Return ranks [n] in the Bayer order, in which smaller sets nest in larger ones."""
    return -bayer_rank(tokens.height, tokens.width)[tokens.raster].astype(np.float32)
