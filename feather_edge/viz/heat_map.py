"""Draw a stage's scores over the picture: where the decoder looked, and what that kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image, ImageDraw

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
    grid: tuple[int, int],
    size: int = 400,
) -> Image.Image:
    """Return the scores as colours over a shadow of ``picture``, kept tokens outlined.

    Colours show ranks, not values: a softmax would show one bright token and nothing else.

    Args:
        picture: what the model saw, after resize and crop.
        scores: [num_visual_tokens], NaN where a token was gone before (grey); None for a
            criterion that has no scores.
        kept_indices: raster indices of the kept tokens.
        grid: (rows, columns) of visual tokens.
        size: length of the longer side of the result in pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    scale = size / max(picture.size)
    width, height = (round(side * scale) for side in picture.size)
    rows = np.arange(height) * grid[0] // height
    columns = np.arange(width) * grid[1] // width
    cells = (rows[:, None], columns[None, :])
    shadow = np.asarray(picture.convert("L").resize((width, height), Image.Resampling.NEAREST))
    colours = np.full((*grid, 3), GONE, np.uint8)
    if scores is not None:
        levels = _ranks(scores).reshape(grid)
        alive = ~np.isnan(levels)
        colours[alive] = colour_of(levels[alive])
    light = (1 - PICTURE_SHARE) + PICTURE_SHARE * (shadow[..., None] / 255.0)
    canvas = Image.fromarray((colours[cells] * light).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    kept = np.zeros(grid, np.bool_)
    kept.ravel()[kept_indices] = True
    _outline(draw, kept, width=width, height=height)
    if scores is None:
        font = ImageFont.load_default(size=max(10, size // 20))
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


def _outline(
    draw: ImageDraw.ImageDraw, kept: NDArray[np.bool_], *, width: int, height: int
) -> None:
    """Draw a line wherever a kept token borders one that is not."""
    num_rows, num_columns = kept.shape
    padded = np.pad(kept, 1)
    xs = [-(-column * width // num_columns) for column in range(num_columns + 1)]
    ys = [-(-row * height // num_rows) for row in range(num_rows + 1)]
    for row, column in zip(*np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1]), strict=True):
        draw.line((xs[column], ys[row], xs[column + 1], ys[row]), fill="#ffffff", width=2)
    for row, column in zip(*np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1]), strict=True):
        draw.line((xs[column], ys[row], xs[column], ys[row + 1]), fill="#ffffff", width=2)
