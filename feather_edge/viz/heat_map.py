"""Draw a stage's scores over the picture: where the decoder looked, and what that kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from feather_edge.viz.token_map import TokenMap

__all__ = ["colour_of", "heat_map"]

_STOPS = np.array(
    [(22, 16, 70), (92, 24, 128), (178, 44, 110), (238, 92, 60), (252, 172, 42), (252, 248, 168)],
    np.float64,
)
"""From low to high; brightness rises all the way, so it also reads in grey."""

GONE = (70, 70, 70)
PICTURE_SHARE = 0.22
"""How much of the picture's brightness shines through the colours."""


def colour_of(levels: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return colours [..., 3] of levels in 0..1."""
    place = np.clip(levels, 0, 1) * (len(_STOPS) - 1)
    below = np.minimum(place.astype(np.int64), len(_STOPS) - 2)
    share = (place - below)[..., None]
    colours: NDArray[np.float64] = _STOPS[below] * (1 - share) + _STOPS[below + 1] * share
    return colours.astype(np.uint8)


def heat_map(
    picture: Image.Image,
    scores: NDArray[np.float32] | None,
    kept_indices: NDArray[np.int64],
    *,
    tokens: TokenMap,
) -> Image.Image:
    """Return the scores as colours over a shadow of ``picture``, kept tokens outlined.

    Colours show ranks, not values: a softmax would show one bright token and nothing else.

    Args:
        picture: what the model saw, after resize and crop.
        scores: [num_visual_tokens], NaN where a token was gone before (grey); None for a
            criterion that has no scores.
        kept_indices: of the kept tokens, among all of the prompt.
        tokens: which token each pixel of the result shows; see ``token_maps``.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = tokens.pixels.shape
    shadow = np.asarray(picture.convert("L").resize((width, height), Image.Resampling.NEAREST))
    colours = np.full((height, width, 3), GONE, np.uint8)
    if scores is not None:
        levels = np.where(tokens.pixels >= 0, _ranks(scores)[tokens.pixels], np.nan)
        alive = ~np.isnan(levels)
        colours[alive] = colour_of(levels[alive])
    light = (1 - PICTURE_SHARE) + PICTURE_SHARE * (shadow[..., None] / 255.0)
    shown = (colours * light).astype(np.uint8)
    shown[_borders(np.isin(tokens.pixels, kept_indices))] = 255
    canvas = Image.fromarray(shown)
    draw = ImageDraw.Draw(canvas)
    if scores is None:
        font = ImageFont.load_default(size=max(10, max(width, height) // 20))
        draw.text((width / 2, height / 2), "ranks without scores", "#ffffff", font, "mm",
                  stroke_width=3, stroke_fill="#000000")  # fmt: skip
    return canvas


def _ranks(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return each score's rank in 0..1, NaN where there is none."""
    ranks = np.full(scores.shape, np.nan)
    alive = np.flatnonzero(~np.isnan(scores))
    order = alive[np.argsort(scores[alive], kind="stable")]
    ranks[order] = np.linspace(0, 1, len(order))
    return ranks


def _borders(kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels within two of a border between kept tokens and others."""
    padded = np.pad(kept, 1)
    borders = np.zeros_like(kept)
    for axis in (0, 1):
        differs = np.diff(padded.astype(np.int8), axis=axis) != 0
        inner = differs[:, 1:-1] if axis == 0 else differs[1:-1]
        borders |= np.take(inner, range(kept.shape[axis]), axis=axis)
        borders |= np.take(inner, range(1, kept.shape[axis] + 1), axis=axis)
    return borders
