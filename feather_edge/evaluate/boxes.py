"""Boxes that a model answers with, and how well two of them agree."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from feather_edge.images.geometry import Box

_LOCATION_TOKEN = re.compile(r"<loc_?(\d+)>")
_ROWS_FIRST = re.compile(r"(?:<loc\d{4}>\s*){4}[^<]*")
"""PaliGemma's box: y0, x0, y1, x1, then what it is."""


def parse_location_tokens(text: str, *, num_bins: int, image_size: tuple[int, int]) -> Box | None:
    """Return the box that an answer names, or None if it is not exactly four location tokens.

    Args:
        text: such as ``<loc_03><loc_10><loc_08><loc_15>``: x0, y0, x1, y1 as bin numbers. Or as
            PaliGemma writes it, ``<loc0010><loc0003><loc0015><loc0008> cup``: rows come first.
        num_bins: bins that each axis is divided into; a token stands for the middle of its bin.
        image_size: (height, width) in pixels of the image that the bins divide.
    """
    bins = [int(number) for number in _LOCATION_TOKEN.findall(text)]
    is_rows_first = _ROWS_FIRST.fullmatch(text.strip()) is not None
    if len(bins) != 4 or (_LOCATION_TOKEN.sub("", text).strip() and not is_rows_first):
        return None
    height, width = image_size
    if is_rows_first:
        bins = [bins[1], bins[0], bins[3], bins[2]]
    x0, y0, x1, y1 = ((number + 0.5) / num_bins for number in bins)
    return (x0 * width, y0 * height, x1 * width, y1 * height)


def intersection_over_union(first: Box, second: Box) -> float:
    """Return the area two boxes share by the area they cover; 0 for an empty or inverted box."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    covered = _area(first) + _area(second) - shared
    return shared / covered if covered > 0 else 0.0


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
