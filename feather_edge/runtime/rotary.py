"""Rotary tables, computed on the host from original positions.

Because tables are inputs of the graphs, pruned gaps and scaling never enter a graph.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feather_edge.manifest import Rotary


def rotary_tables(
    rotary: Rotary, positions: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return cos and sin [S, Dh/2] of ``positions`` [S]."""
    angles = positions.astype(np.float32)[:, None] * rotary_frequencies(rotary)[None]
    return np.cos(angles), np.sin(angles)


def rotary_frequencies(rotary: Rotary) -> NDArray[np.float32]:
    """Return the angle per position [Dh/2], in float32 as the models were trained."""
    exponents = np.arange(0, rotary.head_dim, 2, dtype=np.float32) / np.float32(rotary.head_dim)
    frequencies = (1.0 / np.float32(rotary.theta) ** exponents).astype(np.float32)
    if rotary.scaling == "linear":
        return (frequencies / np.float32(rotary.factor)).astype(np.float32)
    if rotary.scaling == "llama3":
        return _llama3(rotary, frequencies)
    return frequencies


def _llama3(rotary: Rotary, frequencies: NDArray[np.float32]) -> NDArray[np.float32]:
    """Slow down long wavelengths by ``factor``, keep short ones, blend in between (Llama 3.1)."""
    wavelengths = 2 * math.pi / frequencies
    turns = rotary.original_max_positions / wavelengths
    blend = (turns - rotary.low_freq_factor) / (rotary.high_freq_factor - rotary.low_freq_factor)
    share = np.clip(blend, 0.0, 1.0)
    return ((1 - share) * frequencies / rotary.factor + share * frequencies).astype(np.float32)
