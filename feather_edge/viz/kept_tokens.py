"""Draw the visual tokens that a pruning stage kept over the picture the model saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from PIL import Image, ImageFont

    from feather_edge.images.geometry import Box
    from feather_edge.viz.token_map import TokenMap

DROPPED_DIM = 0.16
"""Brightness of a dropped token's pixels: dark enough to read as gone, light enough to place."""

LOST_DIM, LOST_COLOUR = 0.42, 0.35
"""Brightness and share of colour of dropped pixels, where what was lost shall be seen."""

CAPTION_HEIGHT = 44
HEADING_HEIGHT = 34
MARGIN = 8
PAPER, INK, ALARM = (255, 255, 255), (24, 24, 24), (190, 20, 30)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture of a contact sheet, with two short lines under it."""

    picture: Image.Image
    title: str
    subtitle: str = ""
    is_alarming: bool = False


def kept_tokens(
    picture: Image.Image,
    kept_indices: NDArray[np.int64] | Sequence[int],
    *,
    tokens: TokenMap,
    boxes: Sequence[tuple[Box, str]] = (),
    is_lost_visible: bool = False,
) -> Image.Image:
    """Return ``picture`` enlarged, with the tokens that are not kept dimmed.

    Args:
        picture: what the model saw, after resize and crop.
        kept_indices: of the kept tokens, among all of the prompt.
        tokens: which token each pixel of the result shows; see ``token_maps``.
        boxes: boxes in the picture's pixels, and the colour of each.
        is_lost_visible: dropped tokens go greyish instead of dark.
    """
    from PIL import Image, ImageDraw

    height, width = tokens.pixels.shape
    scale = width / picture.width
    # Nearest neighbour: interpolation would invent detail the model never had.
    pixels = np.asarray(picture.convert("RGB").resize((width, height), Image.Resampling.NEAREST))
    is_kept = np.isin(tokens.pixels, kept_indices)
    dimmed = pixels * DROPPED_DIM
    if is_lost_visible:
        grey = pixels.mean(axis=2, keepdims=True)
        dimmed = (pixels * LOST_COLOUR + grey * (1 - LOST_COLOUR)) * LOST_DIM
    shown = np.where(is_kept[..., None], pixels, dimmed.astype(np.uint8))
    canvas = Image.fromarray(shown)
    draw = ImageDraw.Draw(canvas)
    for box, colour in boxes:
        x0, y0, x1, y1 = (coordinate * scale for coordinate in box)
        if x0 < x1 and y0 < y1:
            draw.rectangle((x0, y0, x1, y1), outline=colour, width=3)
    return canvas


def contact_sheet(rows: Sequence[Sequence[Panel]], *, heading: str = "") -> Image.Image:
    """Return panels side by side, row under row, each with its caption, under a heading."""
    from PIL import Image, ImageDraw, ImageFont

    cell_width = max(panel.picture.width for row in rows for panel in row) + MARGIN
    cell_height = max(panel.picture.height for row in rows for panel in row)
    cell_height += CAPTION_HEIGHT + MARGIN
    num_columns = max(len(row) for row in rows)
    head = HEADING_HEIGHT if heading else 0
    sheet = Image.new(
        "RGB", (num_columns * cell_width + MARGIN, len(rows) * cell_height + MARGIN + head), PAPER
    )
    draw = ImageDraw.Draw(sheet)
    fonts = ImageFont.load_default(size=17), ImageFont.load_default(size=14)
    draw.text((MARGIN + 2, MARGIN), heading, fill=INK, font=ImageFont.load_default(size=21))
    for y, row in enumerate(rows):
        for x, panel in enumerate(row):
            left, top = MARGIN + x * cell_width, head + MARGIN + y * cell_height
            sheet.paste(panel.picture, (left, top))
            below = top + panel.picture.height
            ink = ALARM if panel.is_alarming else INK
            lines = zip((panel.title, panel.subtitle), fonts, (2, 23), strict=True)
            for text, font, drop in lines:
                fitting = _fit(text, font, panel.picture.width)
                draw.text((left + 2, below + drop), fitting, fill=ink, font=font)
    return sheet


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return ``text``, its end cut off where it would run into the next panel."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
