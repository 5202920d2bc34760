"""What is asked while the clock runs: never the same twice, so that no cache can answer.

Engines keep features by the hash of a picture and keys by a common start of prompts. Pictures are
given as decoded arrays, because TTFT starts at a decoded image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from feather_edge.evaluate.scenes import MAX_OBJECTS, MIN_OBJECTS, ask, make_scene
from feather_edge.images import load_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feather_edge.images.pixels import ImageSource

__all__ = ["Request", "Requests", "picture_requests", "scene_requests"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A decoded picture, uint8 [H, W, 3], and what is asked about it."""

    image: NDArray[np.uint8]
    prompt: str


Requests = Callable[[int, int], Sequence[Request]]
"""Gives the requests of a round: ``requests(round_number, num_requests)``.

Those of one round differ in nothing that takes time: same size, same prompt. The picture differs.
"""


def scene_requests(*, seed: int) -> Requests:
    """Return a source of generated scenes, each with a question about a place in it."""

    def requests(round_number: int, num_requests: int) -> list[Request]:
        rng = np.random.default_rng([seed, round_number])
        question = None
        while question is None:  # rarely, no object of a scene is the only one of its kind
            num_objects = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
            scene = make_scene(rng, num_objects=num_objects)
            question = ask(scene.objects, "localisation", rng)
        return _variants(scene.image, question.text, rng, num_requests)

    return requests


def picture_requests(image: ImageSource, prompt: str, *, seed: int) -> Requests:
    """Return a source of one picture and prompt; one pixel is another from request to request.

    Raises:
        RequestError: if the picture cannot be read.
    """
    pixels = np.asarray(load_image(image))

    def requests(round_number: int, num_requests: int) -> list[Request]:
        return _variants(pixels, prompt, np.random.default_rng([seed, round_number]), num_requests)

    return requests


def _variants(
    pixels: NDArray[np.uint8], prompt: str, rng: np.random.Generator, num_requests: int
) -> list[Request]:
    variants = []
    for _ in range(num_requests):
        changed = pixels.copy()
        row, column = rng.integers(pixels.shape[0]), rng.integers(pixels.shape[1])
        changed[row, column] = rng.integers(0, 256, 3)
        variants.append(Request(image=changed, prompt=prompt))
    return variants
