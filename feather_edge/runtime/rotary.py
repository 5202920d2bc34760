"""Rotary tables, computed on the host from original positions.

Because tables are inputs of the graphs, pruned gaps, scaling and M-RoPE never enter a graph.

With M-RoPE (Qwen2-VL, arXiv 2409.12191, section 2.1) a row has three coordinates, time, row and
column. Text has the same number three times; the tokens of a picture count rows and columns from
the number that the text before has reached, and text after goes on behind the larger of the two.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from feather_edge.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from feather_edge.manifest import BundleManifest, Rotary
    from feather_edge.pruning import VisualSpan


def prompt_coordinates(
    rotary: Rotary, num_rows: int, spans: Sequence[VisualSpan]
) -> NDArray[np.int64]:
    """Return what turns each row of an unpruned prompt: its number [1, S], or [3, S] with M-RoPE.

    A new token goes on at the largest of them plus one.

    Args:
        rotary: of the decoder.
        num_rows: S.
        spans: where the visual tokens are.
    """
    if rotary.sections is None:
        return np.arange(num_rows, dtype=np.int64)[None]
    coordinates = np.empty((3, num_rows), np.int64)
    row, reached = 0, 0
    for span in spans:
        num_text = span.start - row
        coordinates[:, row : span.start] = reached + np.arange(num_text)
        reached += num_text
        places = np.divmod(np.arange(span.num_tokens), span.width)
        coordinates[:, span.start : span.end] = reached
        coordinates[1:, span.start : span.end] += places
        reached += max(span.height, span.width)
        row = span.end
    coordinates[:, row:] = reached + np.arange(num_rows - row)
    return coordinates


def require_plain(manifest: BundleManifest) -> None:
    """Refuse to number rows anew where a position is more than one number that only turns.

    Raises:
        RequestError: for M-RoPE, whose rows have three coordinates, and for windows of positions.
    """
    if manifest.rotary.sections is None and manifest.local_attention is None:
        return
    what = "windows of positions" if manifest.rotary.sections is None else "M-RoPE"
    raise RequestError(
        f"positions cannot be numbered anew in {manifest.model_type}, which has {what}; choose "
        f"pyramiddrop, which keeps them"
    )


def rotary_tables(
    rotary: Rotary, coordinates: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return cos and sin [S, Dh/2] of ``coordinates`` [S], or [axes, S]; see ``rotary_angles``."""
    # In rows: backends that share memory take no other order.
    angles = np.ascontiguousarray(rotary_angles(rotary, coordinates), np.float32)
    return np.cos(angles), np.sin(angles)


def rotary_angles(rotary: Rotary, coordinates: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the angles [S, Dh/2] of ``coordinates`` [axes, S], or [S] where all axes agree."""
    num_axes = 1 if rotary.sections is None else 3
    by_axis = np.broadcast_to(coordinates, (num_axes, coordinates.shape[-1]))
    turned_by = by_axis.T[:, _axes(rotary)]  # [S, Dh/2]
    angles = turned_by.astype(np.float64) * rotary_frequencies(rotary)
    return np.ascontiguousarray(angles)  # backends read the tables where they lie


def _axes(rotary: Rotary) -> NDArray[np.int64]:
    """Return which coordinate turns each of the Dh/2 pairs."""
    if rotary.sections is None:
        return np.zeros(rotary.head_dim // 2, np.int64)
    if not rotary.is_interleaved:
        return np.repeat(np.arange(3), rotary.sections)
    axes = np.zeros(rotary.head_dim // 2, np.int64)
    for axis in (1, 2):
        axes[axis : 3 * rotary.sections[axis] : 3] = axis
    return axes


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
