"""Criteria that run before the decoder, on the projected vision features: one file each.

They see no attention, only what the vision encoder and the embedding table give, so they work on
any bundle, also an unsplit one, and compose with any criterion inside the decoder. A criterion is
a function from one image's tokens to their ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from feather_edge.errors import RequestError
from feather_edge.pruning.pre_criteria.cdpruner import cdpruner
from feather_edge.pruning.pre_criteria.dart import dart
from feather_edge.pruning.pre_criteria.divprune import divprune
from feather_edge.pruning.pre_criteria.random import random
from feather_edge.pruning.pre_criteria.uniform import uniform

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from feather_edge.pruning.pre_criteria.tokens import ImageTokens

    PreCriterion = Callable[[ImageTokens, int], NDArray[np.float32]]
    """Takes an image's n tokens and K; returns ranks [n], the K to keep above all others."""

PRE_CRITERIA: dict[str, PreCriterion] = {
    "uniform": uniform,
    "random": random,
    "divprune": divprune,
    "dart": dart,
    "cdpruner": cdpruner,
}

PRE_CRITERION_NAMES = (*PRE_CRITERIA, "none")


def pre_criterion(name: str) -> PreCriterion:
    """Return the criterion called ``name``.

    Raises:
        RequestError: if there is none.
    """
    if name not in PRE_CRITERIA:
        raise RequestError(
            f"criterion before the decoder {name!r} is unknown; "
            f"choose {', '.join(PRE_CRITERION_NAMES)}"
        )
    return PRE_CRITERIA[name]
