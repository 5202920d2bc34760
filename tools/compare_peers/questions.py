"""Pictures and questions, no two alike, so that no cache can answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COLOURS = ("red", "green", "blue", "yellow", "white", "black")
THINGS = ("circle", "square", "triangle", "star", "cross", "ring")


def ask(folder: Path, part: str, *, side: int, number: int) -> Iterator[tuple[Path, str]]:
    """Yield pictures of ``side`` pixels, written below ``folder``, each with a question.

    All pictures of a part differ, and so do all questions, though these have the same number of
    words: a picture is patches of random colours, which says as much as one of anything else to a
    random model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        path = folder / f"{part}-{side}-{index}.png"
        if not path.exists():
            seed = [side, index, *part.encode()]
            patches = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
            Image.fromarray(patches).resize((side, side), Image.Resampling.BICUBIC).save(path)
        colour, thing = COLOURS[index % 6], THINGS[(index // 6 + index) % 6]
        yield path, f"{part} {index}: where is the {colour} {thing}?"
