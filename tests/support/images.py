"""Pictures for tests: random ones, and scenes of the generator that trains the shipped model."""

from __future__ import annotations

import numpy as np

from feather_edge.evaluate.scenes import COARSE_KINDS, ask, make_scene, scene_rng

__all__ = ["random_images", "scene_questions"]


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
