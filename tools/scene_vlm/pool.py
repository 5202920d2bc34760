"""A pool of rendered training scenes, kept on disk so that rendering is off the critical path."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING

import numpy as np

from feather_edge.evaluate.scenes import (
    IMAGE_SIZE_PX,
    MAX_OBJECTS,
    NUM_PATCHES_PER_SIDE,
    SceneObject,
    make_scene,
    scene_rng,
)

if TYPE_CHECKING:
    from pathlib import Path

_CHUNK = 500
# Few objects are for the start of the curriculum only.
_OBJECT_WEIGHTS = np.array([0.05, 0.06, 0.12, 0.14, 0.15, 0.16, 0.16, 0.16])


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenePool:
    """Scenes as arrays, N in number.

    Attributes:
        images: uint8 [N, 112, 112, 3].
        owners: uint8 [N, 14, 14], see `feather_edge.evaluate.scenes.Scene`.
        attributes: int64 [N, 8, 2], colour and shape; -1 where there is no object.
        boxes: float32 [N, 8, 4], (x0, y0, x1, y1) in pixels; 0 where there is no object.
        num_objects: int64 [N].
    """

    images: np.ndarray
    owners: np.ndarray
    attributes: np.ndarray
    boxes: np.ndarray
    num_objects: np.ndarray

    def objects(self, index: int, *, flipped: bool = False) -> tuple[SceneObject, ...]:
        """Return the objects of one scene, mirrored left to right when flipped."""
        items = []
        for slot in range(int(self.num_objects[index])):
            x0, y0, x1, y1 = (float(value) for value in self.boxes[index, slot])
            if flipped:
                x0, x1 = IMAGE_SIZE_PX - x1, IMAGE_SIZE_PX - x0
            colour, shape = (int(value) for value in self.attributes[index, slot])
            items.append(SceneObject(colour=colour, shape=shape, box=(x0, y0, x1, y1)))
        return tuple(items)


def load_pool(folder: Path, *, num_scenes: int, workers: int) -> ScenePool:
    """Return the first num_scenes training scenes, rendering them when they are not there."""
    names = ("images", "owners", "attributes", "boxes", "num_objects")
    paths = {name: folder / f"{name}_{num_scenes}.npy" for name in names}
    if not all(path.exists() for path in paths.values()):
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in _render(num_scenes, workers).items():
            np.save(paths[name], array)
    # Mapped, so that several training processes share one copy.
    return ScenePool(**{name: np.load(path, mmap_mode="r") for name, path in paths.items()})


def _render(num_scenes: int, workers: int) -> dict[str, np.ndarray]:
    starts = range(0, num_scenes, _CHUNK)
    side = NUM_PATCHES_PER_SIDE
    arrays: dict[str, np.ndarray] = {
        "images": np.empty((num_scenes, IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3), dtype=np.uint8),
        "owners": np.empty((num_scenes, side, side), dtype=np.uint8),
        "attributes": np.empty((num_scenes, MAX_OBJECTS, 2), dtype=np.int64),
        "boxes": np.empty((num_scenes, MAX_OBJECTS, 4), dtype=np.float32),
        "num_objects": np.empty(num_scenes, dtype=np.int64),
    }
    with get_context("spawn").Pool(workers) as pool:
        for start, chunk in zip(starts, pool.imap(_render_chunk, starts), strict=True):
            for name, part in chunk.items():
                arrays[name][start : start + len(part)] = part[: num_scenes - start]
    return arrays


def _render_chunk(start: int) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {"images": [], "owners": []}
    attributes = np.full((_CHUNK, MAX_OBJECTS, 2), -1, dtype=np.int64)
    boxes = np.zeros((_CHUNK, MAX_OBJECTS, 4), dtype=np.float32)
    num_objects = np.zeros(_CHUNK, dtype=np.int64)
    for offset in range(_CHUNK):
        rng = scene_rng("train", start + offset)
        wanted = 1 + int(rng.choice(MAX_OBJECTS, p=_OBJECT_WEIGHTS))
        scene = make_scene(rng, num_objects=wanted)
        parts["images"].append(scene.image)
        parts["owners"].append(scene.owners)
        num_objects[offset] = len(scene.objects)
        for slot, item in enumerate(scene.objects):
            attributes[offset, slot] = item.colour, item.shape
            boxes[offset, slot] = item.box
    return {
        "images": np.stack(parts["images"]),
        "owners": np.stack(parts["owners"]),
        "attributes": attributes,
        "boxes": boxes,
        "num_objects": num_objects,
    }
