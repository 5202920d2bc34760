"""Draw the visual tokens that a pruning stage kept over the picture the model saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from PIL import Image

    from feather_edge.evaluate.boxes import Box

DROPPED_DIM = 0.16
"""Brightness of a dropped token's pixels: dark enough to read as gone, light enough to place."""

CAPTION_HEIGHT = 44
MARGIN = 8
PAPER, INK = (255, 255, 255), (24, 24, 24)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture of a contact sheet, with two short lines under it."""

    picture: Image.Image
    title: str
    subtitle: str = ""


def kept_tokens(
    picture: Image.Image,
    kept_indices: NDArray[np.int64],
    *,
    grid: tuple[int, int],
    boxes: Sequence[tuple[Box, str]] = (),
    size: int = 400,
) -> Image.Image:
    """Return ``picture`` enlarged, with the tokens that are not kept dimmed.

    Args:
        picture: what the model saw, after resize and crop.
        kept_indices: raster indices of the kept tokens.
        grid: (rows, columns) of visual tokens.
        boxes: boxes in the picture's pixels, and the colour of each.
        size: length of the longer side of the result in pixels.
    """
    from PIL import Image, ImageDraw

    scale = size / max(picture.size)
    width, height = (round(side * scale) for side in picture.size)
    # Nearest neighbour: interpolation would invent detail the model never had.
    pixels = np.asarray(picture.convert("RGB").resize((width, height), Image.Resampling.NEAREST))
    kept = np.zeros(grid[0] * grid[1], np.bool_)
    kept[kept_indices] = True
    rows = np.arange(height) * grid[0] // height
    columns = np.arange(width) * grid[1] // width
    is_kept = kept.reshape(grid)[rows[:, None], columns[None, :]]
    shown = np.where(is_kept[..., None], pixels, (pixels * DROPPED_DIM).astype(np.uint8))
    canvas = Image.fromarray(shown)
    draw = ImageDraw.Draw(canvas)
    for box, colour in boxes:
        x0, y0, x1, y1 = (coordinate * scale for coordinate in box)
        if x0 < x1 and y0 < y1:
            draw.rectangle((x0, y0, x1, y1), outline=colour, width=3)
    return canvas


def contact_sheet(rows: Sequence[Sequence[Panel]]) -> Image.Image:
    """Return panels side by side, row under row, each with its caption."""
    from PIL import Image, ImageDraw, ImageFont

    cell_width = max(panel.picture.width for row in rows for panel in row) + MARGIN
    cell_height = max(panel.picture.height for row in rows for panel in row)
    cell_height += CAPTION_HEIGHT + MARGIN
    num_columns = max(len(row) for row in rows)
    sheet = Image.new(
        "RGB", (num_columns * cell_width + MARGIN, len(rows) * cell_height + MARGIN), PAPER
    )
    draw = ImageDraw.Draw(sheet)
    fonts = ImageFont.load_default(size=17), ImageFont.load_default(size=14)
    for y, row in enumerate(rows):
        for x, panel in enumerate(row):
            left, top = MARGIN + x * cell_width, MARGIN + y * cell_height
            sheet.paste(panel.picture, (left, top))
            below = top + panel.picture.height
            draw.text((left + 2, below + 2), panel.title, fill=INK, font=fonts[0])
            draw.text((left + 2, below + 23), panel.subtitle, fill=INK, font=fonts[1])
    return sheet
