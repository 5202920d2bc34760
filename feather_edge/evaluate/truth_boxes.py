"""How a file writes the right boxes; never guessed, since the numbers alone do not say."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feather_edge.errors import RequestError
from feather_edge.evaluate.boxes import parse_location_tokens

if TYPE_CHECKING:
    from pathlib import Path

    from feather_edge.images.geometry import Box

__all__ = ["BOX_TEXT", "TruthBoxes"]

NAMES = ("pixels", "xywh", "0-1", "0-1000", "location-tokens:N")

_NUMBER = r"\s*-?\d*\.?\d+\s*"
BOX_TEXT = re.compile(
    rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]"
    rf"|\({_NUMBER},{_NUMBER}\)\s*,?\s*\({_NUMBER},{_NUMBER}\)"
    r"|(?:<loc_?\d+>\s*){4}"
)
"""A box in an answer: ``[a, b, c, d]``, ``(a,b),(c,d)``, or four location tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthBoxes:
    """One way to write boxes.

    Attributes:
        name: ``pixels``: x0, y0, x1, y1 of the picture on disk; ``xywh``: x, y, width, height in
            pixels, as COCO has it; ``0-1`` and ``0-1000``: x0, y0, x1, y1 as shares of the picture
            on disk; ``location-tokens:N``: four tokens of N bins.
    """

    name: str

    @classmethod
    def of(cls, name: str) -> TruthBoxes:
        """Return the way called ``name``.

        Raises:
            RequestError: if there is none.
        """
        if name not in NAMES[:-1] and not re.fullmatch(r"location-tokens:[1-9]\d*", name):
            raise RequestError(f"truth-boxes {name!r} is unknown; choose {', '.join(NAMES)}")
        return cls(name=name)

    def read(self, place: str, value: Any, image: Path) -> Box:
        """Return the box of an entry in pixels of ``image``.

        Raises:
            RequestError: if it is none, or cannot be one of this kind.
        """
        if self.name.startswith("location-tokens"):
            box = self._location_tokens(place, value, image)
        else:
            x0, y0, x1, y1 = self._numbers(place, value)
            if self.name == "xywh":
                x1, y1 = x0 + x1, y0 + y1
            width, height = self._unit(image)
            box = (x0 * width, y0 * height, x1 * width, y1 * height)
        if box[0] >= box[2] or box[1] >= box[3]:
            raise self._unfit(place, value, "x0 < x1, y0 < y1")
        return box

    def _numbers(self, place: str, value: Any) -> list[float]:
        if isinstance(value, str):
            value = [float(number) for number in re.findall(r"-?\d*\.?\d+", value)]
        is_numbers = isinstance(value, list) and all(
            isinstance(each, int | float) and not isinstance(each, bool) and math.isfinite(each)
            for each in value
        )
        if not is_numbers or len(value) != 4:
            raise self._unfit(place, value, "four numbers")
        if self.name in {"pixels", "xywh"} and max(value) <= 1:
            raise self._unfit(place, value, "larger than a pixel")
        if max(value) > {"0-1": 1, "0-1000": 1000}.get(self.name, math.inf):
            raise self._unfit(place, value, f"within {self.name}")
        return [float(each) for each in value]

    def _unit(self, image: Path) -> tuple[float, float]:
        """Return (width, height) in pixels of what 1 stands for."""
        if self.name in {"pixels", "xywh"}:
            return 1.0, 1.0
        width, height = _size(image)
        share = 1.0 if self.name == "0-1" else 1e-3
        return width * share, height * share

    def _location_tokens(self, place: str, value: Any, image: Path) -> Box:
        width, height = _size(image)
        num_bins = int(self.name.partition(":")[2])
        box = None
        if isinstance(value, str):
            box = parse_location_tokens(value, num_bins=num_bins, image_size=(height, width))
        if box is None:
            raise self._unfit(place, value, "four tokens such as <loc_07>")
        return box

    def _unfit(self, place: str, value: Any, rule: str) -> RequestError:
        meaning = "[x0, y0, x1, y1] in pixels" if self.name == "pixels" else f"as {self.name} says"
        return RequestError(
            f"{place}: 'box' is {value!r}; it must be {meaning}, {rule}; other ways to write "
            f"boxes are given with --truth-boxes {'|'.join(NAMES)}"
        )


def _size(image: Path) -> tuple[int, int]:
    """Return (width, height) of a picture as it is shown, its EXIF turn applied."""
    from feather_edge.images import load_image

    return load_image(image).size
