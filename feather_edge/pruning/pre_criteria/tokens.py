"""What a criterion before the decoder is given, and what several of them compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class ImageTokens:
    """One image's visual tokens, and the prompt they stand in.

    Attributes:
        features: [n, D] float32, projected into the decoder's width.
        raster: [n], place of each in the image's ``height`` x ``width`` raster.
        text: [T, D] float32, embeddings of the prompt's text.
        seed: of everything random; differs between images.
    """

    features: NDArray[np.float32]
    raster: NDArray[np.int64]
    height: int
    width: int
    text: NDArray[np.float32]
    seed: tuple[int, ...]


def unit_rows(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rows of ``x`` [n, D] at length 1, so that products are cosines; zeros stay."""
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    unit: NDArray[np.float32] = x / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit


def ranks_of(order: Sequence[int], num_tokens: int) -> NDArray[np.float32]:
    """Return ranks [n] that fall along ``order``; tokens that it leaves out come last."""
    ranks = np.full(num_tokens, -len(order), np.float32)
    ranks[np.asarray(order, np.int64)] = -np.arange(len(order))
    return ranks
