"""Criteria that run before the decoder, on the projected vision features: one file each.

They see no attention, only what the vision encoder and the embedding table give, so they work on
any bundle, also an unsplit one, and compose with any criterion inside the decoder. A criterion is
a function from one image's tokens to their ranks; one that merges instead gives new tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from feather_edge.errors import RequestError
from feather_edge.pruning.pre_criteria.cdpruner import cdpruner
from feather_edge.pruning.pre_criteria.dart import dart
from feather_edge.pruning.pre_criteria.divprune import divprune
from feather_edge.pruning.pre_criteria.pooling import pooling
from feather_edge.pruning.pre_criteria.random import random
from feather_edge.pruning.pre_criteria.uniform import uniform

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from feather_edge.pruning.pre_criteria.pooling import Merged
    from feather_edge.pruning.pre_criteria.tokens import ImageTokens

    PreCriterion = Callable[[ImageTokens, int], NDArray[np.float32]]
    """Takes an image's n tokens and K; returns ranks [n], the K to keep above all others."""

    Merger = Callable[[ImageTokens, float], Merged]
    """Takes an image's tokens and the keep ratio."""

PRE_CRITERIA: dict[str, PreCriterion] = {
    "uniform": uniform,
    "random": random,
    "divprune": divprune,
    "dart": dart,
    "cdpruner": cdpruner,
}

MERGERS: dict[str, Merger] = {"pooling": pooling}

PRE_CRITERION_NAMES = (*PRE_CRITERIA, *MERGERS, "none")


def require_pre_criterion(name: str) -> None:
    """Refuse a name that no criterion before the decoder has.

    Raises:
        RequestError: saying which there are.
    """
    if name not in PRE_CRITERION_NAMES:
        raise RequestError(
            f"criterion before the decoder {name!r} is unknown; "
            f"choose {', '.join(PRE_CRITERION_NAMES)}"
        )
