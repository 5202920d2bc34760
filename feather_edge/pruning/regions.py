"""Regions of a picture whose visual tokens the user keeps or drops, whatever the criterion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from feather_edge.errors import RequestError

RegionRule = Literal["protect", "forbid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A box of one picture.

    Attributes:
        box: (x0, y0, x1, y1) in pixels of the picture as it is given, turned upright as its EXIF
            data says; x to the right, y down, x1 and y1 not included.
        rule: ``protect`` keeps every visual token that overlaps the box at every stage,
            ``forbid`` keeps none of them.
        image: which of the request's pictures, from 1.
    """

    box: tuple[float, float, float, float]
    rule: RegionRule = "protect"
    image: int = 1

    def __post_init__(self) -> None:
        if self.rule not in get_args(RegionRule):
            raise RequestError(f"region rule {self.rule!r} is unknown; choose protect or forbid")
        if [math.isfinite(value) for value in self.box] != [True] * 4:
            raise RequestError(f"{self} needs four finite numbers: x0,y0,x1,y1 in pixels")
        x0, y0, x1, y1 = self.box
        if x0 >= x1 or y0 >= y1:
            raise RequestError(f"{self} is empty; x0 must be less than x1, and y0 less than y1")
        if self.image < 1:
            raise RequestError(f"{self}: image {self.image} does not exist; they count from 1")

    def __str__(self) -> str:
        return f"{self.rule} region {','.join(f'{value:g}' for value in self.box)}"
