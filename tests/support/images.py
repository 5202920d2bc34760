"""Pictures for tests: random ones, and scenes of the generator that trains the shipped model."""

from __future__ import annotations

import numpy as np
from PIL import Image

from feather_edge.evaluate.scenes import COARSE_KINDS, ask, make_scene, scene_rng

__all__ = ["ODD_PICTURES", "noise", "random_images", "scene_questions"]


def random_images(count: int, *, seed: int = 0) -> list[np.ndarray]:
    """Smooth random pictures of different sizes, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        height, width = rng.integers(5, 20, 2)
        images.append(coarse.repeat(height, axis=0).repeat(width, axis=1))
    return images


def scene_questions(count: int) -> list[tuple[np.ndarray, str]]:
    """Unseen scenes of 3 to 8 objects, uint8 [112, 112, 3], each with a question about it.

    Every other question asks for a place; the rest go through the coarse kinds in turn.
    """
    asked: list[tuple[np.ndarray, str]] = []
    index = 0
    while len(asked) < count:
        rng = scene_rng("test", index)
        scene = make_scene(rng, num_objects=3 + index % 6)
        kind = COARSE_KINDS[index // 2 % len(COARSE_KINDS)] if index % 2 else "localisation"
        question = ask(scene.objects, kind, rng)
        if question is not None:
            asked.append((scene.image, question.text))
        index += 1
    return asked


def noise(width: int, height: int, mode: str = "RGB", *, seed: int = 0) -> Image.Image:
    """An image of random pixels."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    shape = (height, width, bands) if bands > 1 else (height, width)
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))


def _transparent_palette() -> Image.Image:
    image = noise(33, 21).convert("P")
    image.info["transparency"] = 3
    return image


ODD_PICTURES = {
    "1x1": noise(1, 1),
    "panorama": noise(300, 20),
    "tower": noise(7, 111),
    "odd": noise(29, 31),
    "grayscale": noise(40, 33, "L"),
    "alpha": noise(50, 41, "RGBA"),
    "grayscale-alpha": noise(30, 20, "RGBA").convert("LA"),
    "palette": noise(64, 48).convert("P"),
    "transparent-palette": _transparent_palette(),
    "16-bit": Image.fromarray(
        np.random.default_rng(0).integers(0, 600, (30, 40), dtype=np.uint16)
    ),
    "1-bit": noise(20, 20).convert("1"),
    "cmyk": noise(20, 24).convert("CMYK"),
}
