"""Where the visual tokens of a request, or of a typical one, stand in its prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from feather_edge.pruning import Layout, VisualSpan
from feather_edge.runtime.rotary import prompt_coordinates, rotary_angles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from feather_edge.images import Raster
    from feather_edge.manifest import BundleManifest, Rotary


def place_spans(rasters: Sequence[Raster], is_image: NDArray[np.bool_]) -> list[VisualSpan]:
    """Return the rasters as spans of a prompt.

    Args:
        rasters: in the order of the prompt.
        is_image: [S], which rows of the prompt are image placeholders. Each raster takes as many
            in a row as it has tokens and gaps.
    """
    placeholders = np.flatnonzero(is_image)
    spans, taken = [], 0
    for raster in rasters:
        span = VisualSpan(
            start=int(placeholders[taken]),
            height=raster.height,
            width=raster.width,
            row_gap=raster.row_gap,
            image=raster.image,
        )
        spans.append(span)
        taken += span.end - span.start + raster.end_gap
    return spans


def typical_layout(manifest: BundleManifest, *, num_text_tokens: int = 0) -> Layout:
    """Return the prompt of one picture of usual size and, after it, ``num_text_tokens``."""
    spans, end = [], 0
    for height, width in manifest.image.typical_grids:
        spans.append(VisualSpan(start=end, height=height, width=width))
        end = spans[-1].end
    return prompt_layout(manifest.rotary, end + num_text_tokens, spans)


def prompt_layout(rotary: Rotary, num_rows: int, spans: Sequence[VisualSpan]) -> Layout:
    """Return the layout of an unpruned prompt, with the rotary angles of its rows."""
    angles = rotary_angles(rotary, prompt_coordinates(rotary, num_rows, spans))
    return Layout.full(num_rows, spans, angles=angles)
