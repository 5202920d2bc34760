"""Where the picture on disk lies in the picture that a model sees."""

from __future__ import annotations

from dataclasses import dataclass

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels, x to the right, y down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewGeometry:
    """How the picture on disk lies in the picture the model sees: view = image * scale + offset.

    Attributes:
        scale: of (x, y).
        offset: (x, y) in pixels of the view.
        view_size: (width, height) of the view in pixels.
    """

    scale: tuple[float, float]
    offset: tuple[float, float]
    view_size: tuple[int, int]

    def to_image(self, box: Box) -> Box:
        """Return a box of the view in pixels of the picture on disk."""
        (sx, sy), (ox, oy) = self.scale, self.offset
        x0, y0, x1, y1 = box
        return ((x0 - ox) / sx, (y0 - oy) / sy, (x1 - ox) / sx, (y1 - oy) / sy)

    def to_view(self, box: Box) -> Box:
        """Return a box of the picture on disk in pixels of the view."""
        (sx, sy), (ox, oy) = self.scale, self.offset
        x0, y0, x1, y1 = box
        return (x0 * sx + ox, y0 * sy + oy, x1 * sx + ox, y1 * sy + oy)
