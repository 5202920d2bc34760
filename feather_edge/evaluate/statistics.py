"""How sure a measured share is."""

from __future__ import annotations

import math

__all__ = ["wilson_interval"]


def wilson_interval(num_right: int, total: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a proportion.

    It stays honest at 0 and 1, where resampling would claim certainty.
    """
    z = 1.96
    middle = (num_right + z * z / 2) / (total + z * z)
    half = z * math.sqrt(num_right * (total - num_right) / total + z * z / 4) / (total + z * z)
    return middle - half, middle + half
