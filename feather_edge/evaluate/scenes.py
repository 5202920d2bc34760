"""Scenes of coloured shapes on cluttered backgrounds, and questions about them.

The world that the shipped model knows. Everything is a pure function of (split, index), and the
splits never share a random stream. The model was trained on these very pixels: no change here may
alter one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from PIL import ImageDraw

    from feather_edge.images.geometry import Box

    Points = NDArray[np.float64]

Kind = Literal["localisation", "colour", "shape", "presence", "count"]
Split = Literal["train", "development", "test", "samples"]

SPLIT_SEEDS: dict[Split, int] = {
    "train": 1_000_003,
    "development": 2_000_003,
    "test": 3_000_017,
    "samples": 4_000_037,
}
COARSE_KINDS: tuple[Kind, ...] = ("colour", "shape", "presence", "count")
KINDS: tuple[Kind, ...] = ("localisation", *COARSE_KINDS)

IMAGE_SIZE_PX = 112
PATCH_SIZE_PX = 8
NUM_PATCHES_PER_SIDE = IMAGE_SIZE_PX // PATCH_SIZE_PX
NUM_BINS = 28
BIN_SIZE_PX = IMAGE_SIZE_PX / NUM_BINS
LOCATION_TOKENS = tuple(f"<loc_{index:02d}>" for index in range(NUM_BINS))

COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("circle", "square", "triangle", "star", "cross")
MAX_COUNT = 8
MIN_OBJECTS, MAX_OBJECTS = 3, 8
BACKGROUND_OWNER = MAX_OBJECTS
MIXED_OWNER = MAX_OBJECTS + 1

_RGB = (
    (220, 35, 35),
    (35, 170, 50),
    (40, 70, 225),
    (235, 215, 40),
    (150, 45, 190),
    (246, 246, 246),
)
_SUPERSAMPLING = 2
_MAX_OVERLAP_RATIO = 0.1
_MIN_OWNED_PIXELS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneObject:
    """One shape: indices into COLOURS and SHAPES, and its tight box (x0, y0, x1, y1) in pixels."""

    colour: int
    shape: int
    box: Box


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A rendered scene.

    Attributes:
        image: uint8 [112, 112, 3], RGB.
        objects: the shapes, in drawing order.
        owners: uint8 [14, 14], the object that covers most of each patch, BACKGROUND_OWNER where
            there is none, MIXED_OWNER where an object covers too little to count.
    """

    image: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    owners: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question, its answer as text, and the box in pixels when it asks for a place."""

    text: str
    kind: Kind
    answer: str
    box: Box | None = None


def scene_rng(split: Split, index: int) -> np.random.Generator:
    """Return the random stream of one scene."""
    return np.random.default_rng([SPLIT_SEEDS[split], index])


def unseen_scenes(split: Split, num_scenes: int) -> Iterator[tuple[Scene, list[Question]]]:
    """Yield scenes of 3 to 8 objects, each with one question of every kind that it allows."""
    for index in range(num_scenes):
        rng = scene_rng(split, index)
        scene = make_scene(rng, num_objects=int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1)))
        asked = [ask(scene.objects, kind, rng) for kind in KINDS]
        yield scene, [question for question in asked if question is not None]


def make_scene(rng: np.random.Generator, *, num_objects: int) -> Scene:
    """Render one scene with num_objects shapes (fewer only when they cannot be placed)."""
    from PIL import Image, ImageDraw

    large = _SUPERSAMPLING * IMAGE_SIZE_PX
    canvas = Image.fromarray(_gradient(rng)).resize((large, large), Image.Resampling.BILINEAR)
    labels = Image.new("L", (IMAGE_SIZE_PX, IMAGE_SIZE_PX), BACKGROUND_OWNER)
    draw, label_draw = ImageDraw.Draw(canvas), ImageDraw.Draw(labels)
    _draw_clutter(draw, rng)
    objects = []
    for index, (centre, size) in enumerate(_place(rng, num_objects)):
        colour, shape = int(rng.integers(len(COLOURS))), int(rng.integers(len(SHAPES)))
        outline = _outline(SHAPES[shape], centre, size, float(rng.uniform(-0.25, 0.25)))
        fill = np.clip(np.array(_RGB[colour]) + rng.integers(-22, 23, size=3), 0, 255)
        points = [(float(x), float(y)) for x, y in outline * _SUPERSAMPLING]
        draw.polygon(points, fill=tuple(int(value) for value in fill))
        label_draw.polygon([(float(x), float(y)) for x, y in outline], fill=index)
        (x0, y0), (x1, y1) = outline.min(axis=0), outline.max(axis=0)
        box = (float(x0), float(y0), float(x1), float(y1))
        objects.append(SceneObject(colour=colour, shape=shape, box=box))
    pixels = np.asarray(canvas.reduce(_SUPERSAMPLING), dtype=np.float32)
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * rng.uniform(2.0, 9.0)
    image = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    owners = _patch_owners(np.asarray(labels), len(objects))
    return Scene(image=image, objects=tuple(objects), owners=owners)


def _muted(rng: np.random.Generator) -> tuple[int, int, int]:
    """Return a greyish colour: no object colour is near it."""
    values = np.clip(rng.integers(50, 185) + rng.integers(-20, 21, size=3), 0, 255)
    return (int(values[0]), int(values[1]), int(values[2]))


def _gradient(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return four corner colours, uint8 [2, 2, 3]."""
    first, second = np.array(_muted(rng)), np.array(_muted(rng))
    middle = (first + second) // 2
    corners = np.stack([first, middle, middle, second]).reshape(2, 2, 3)
    return np.rot90(corners, int(rng.integers(4))).astype(np.uint8).copy()


def _draw_clutter(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    limit = _SUPERSAMPLING * IMAGE_SIZE_PX
    for _ in range(int(rng.integers(2, 6))):
        x, y = rng.uniform(0, limit, size=2)
        width, height = rng.uniform(6, 40, size=2)
        draw.ellipse((x, y, x + width, y + height), fill=_muted(rng))
    for _ in range(int(rng.integers(1, 5))):
        ends = [float(value) for value in rng.uniform(0, limit, size=4)]
        draw.line(ends, fill=_muted(rng), width=int(rng.integers(1, 5)))


def _place(rng: np.random.Generator, num_objects: int) -> list[tuple[NDArray[np.float64], float]]:
    """Return centres and sizes in pixels of boxes that hardly overlap."""
    largest = 36.0 if num_objects <= 5 else 29.0
    placed: list[tuple[NDArray[np.float64], float]] = []
    for _ in range(40 * num_objects):
        if len(placed) == num_objects:
            break
        size = float(rng.uniform(18.0, largest))
        centre = rng.uniform(size * 0.55, IMAGE_SIZE_PX - size * 0.55, size=2)
        if all(_overlap(centre, size, *other) <= _MAX_OVERLAP_RATIO for other in placed):
            placed.append((centre, size))
    return placed


def _overlap(
    centre: NDArray[np.float64], size: float, other_centre: NDArray[np.float64], other_size: float
) -> float:
    """Return the shared area of two square boxes relative to the smaller one."""
    distance = np.abs(centre - other_centre)
    sides = np.clip((size + other_size) / 2 - distance, 0.0, min(size, other_size))
    return float(sides[0] * sides[1]) / min(size, other_size) ** 2


def _outline(
    shape: str, centre: NDArray[np.float64], size: float, turn: float
) -> NDArray[np.float64]:
    """Return the corners [n, 2] of a shape in pixels; turn is in radians."""
    if shape == "circle":
        angles = np.arange(24) * (math.tau / 24)
        return centre + size / 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if shape == "square":
        corners = np.array([(-0.43, -0.43), (0.43, -0.43), (0.43, 0.43), (-0.43, 0.43)])
    elif shape == "triangle":
        corners = np.array([(0.0, -0.5), (0.5, 0.42), (-0.5, 0.42)])
    elif shape == "star":
        angles = np.arange(10) * (math.tau / 10) - math.tau / 4
        radii = np.where(np.arange(10) % 2 == 0, 0.54, 0.22)
        corners = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    else:
        arm, end = 0.15, 0.48
        quarter = np.array([(-arm, -end), (arm, -end), (arm, -arm)])
        corners = np.concatenate([_rotate(quarter, index * math.pi / 2) for index in range(4)])
    return centre + size * _rotate(corners, turn)


def _rotate(points: Points, angle: float) -> Points:
    cosine, sine = math.cos(angle), math.sin(angle)
    turned: Points = np.matmul(points, np.array([[cosine, sine], [-sine, cosine]]))
    return turned


def _patch_owners(labels: NDArray[np.uint8], num_objects: int) -> NDArray[np.uint8]:
    side, patch = NUM_PATCHES_PER_SIDE, PATCH_SIZE_PX
    patches = (
        labels.reshape(side, patch, side, patch).transpose(0, 2, 1, 3).reshape(side, side, -1)
    )
    counts = (patches[..., None] == np.arange(num_objects, dtype=np.uint8)).sum(axis=2)
    best, most = counts.argmax(axis=-1), counts.max(axis=-1)
    owners = np.where(most >= _MIN_OWNED_PIXELS, best, MIXED_OWNER)
    return np.where(most == 0, BACKGROUND_OWNER, owners).astype(np.uint8)


def ask(objects: tuple[SceneObject, ...], kind: Kind, rng: np.random.Generator) -> Question | None:
    """Return a random unambiguous question of one kind, or None when the scene allows none."""
    if kind == "localisation":
        return _ask_localisation(objects, rng)
    if kind == "presence":
        return _ask_presence(objects, rng)
    if kind == "count":
        return _ask_count(objects, rng)
    return _ask_attribute(objects, kind, rng)


def _ask_localisation(
    objects: tuple[SceneObject, ...], rng: np.random.Generator
) -> Question | None:
    pairs = [(item.colour, item.shape) for item in objects]
    unique = [item for item in objects if pairs.count((item.colour, item.shape)) == 1]
    if not unique:
        return None
    item = unique[int(rng.integers(len(unique)))]
    text = f"where is the {COLOURS[item.colour]} {SHAPES[item.shape]} ?"
    return Question(text=text, kind="localisation", answer=box_text(item.box), box=item.box)


def _ask_attribute(
    objects: tuple[SceneObject, ...], kind: Kind, rng: np.random.Generator
) -> Question | None:
    keys = [item.shape if kind == "colour" else item.colour for item in objects]
    unique = [item for item, key in zip(objects, keys, strict=True) if keys.count(key) == 1]
    if not unique:
        return None
    item = unique[int(rng.integers(len(unique)))]
    if kind == "colour":
        text, answer = f"what colour is the {SHAPES[item.shape]} ?", COLOURS[item.colour]
    else:
        text, answer = f"what shape is the {COLOURS[item.colour]} object ?", SHAPES[item.shape]
    return Question(text=text, kind=kind, answer=answer)


def _ask_presence(objects: tuple[SceneObject, ...], rng: np.random.Generator) -> Question:
    """Ask about a pair; half are absent, most of those with colour and shape seen elsewhere."""
    present = {(item.colour, item.shape) for item in objects}
    if rng.random() < 0.5:
        colour, shape = sorted(present)[int(rng.integers(len(present)))]
        answer = "yes"
    else:
        everything = {(c, s) for c in range(len(COLOURS)) for s in range(len(SHAPES))}
        crossed = {(c, s) for c, _ in present for _, s in present}
        near = {(c, s) for c, s in everything if any(c == d or s == t for d, t in present)}
        draw = rng.random()
        pool = crossed if draw < 0.6 else near if draw < 0.85 else everything
        absent = sorted(pool - present) or sorted(everything - present)
        colour, shape = absent[int(rng.integers(len(absent)))]
        answer = "no"
    text = f"is there a {COLOURS[colour]} {SHAPES[shape]} ?"
    return Question(text=text, kind="presence", answer=answer)


def _ask_count(objects: tuple[SceneObject, ...], rng: np.random.Generator) -> Question:
    """Ask for a number, every number that occurs being equally likely."""
    counts: dict[int, list[str]] = {}
    for index, shape in enumerate(SHAPES):
        total = sum(item.shape == index for item in objects)
        counts.setdefault(total, []).append(f"how many {plural(shape)} are there ?")
    for index, colour in enumerate(COLOURS):
        total = sum(item.colour == index for item in objects)
        counts.setdefault(total, []).append(f"how many {colour} objects are there ?")
    totals = sorted(total for total in counts if total <= MAX_COUNT)
    total = totals[int(rng.integers(len(totals)))]
    texts = counts[total]
    return Question(text=texts[int(rng.integers(len(texts)))], kind="count", answer=str(total))


def plural(shape: str) -> str:
    """Return the plural of a shape word."""
    return shape + ("es" if shape.endswith("s") else "s")


def to_bin(coordinate_px: float) -> int:
    """Return the bin of a coordinate in pixels; bin k is centred on (k + 0.5) * BIN_SIZE_PX."""
    return min(NUM_BINS - 1, max(0, int(coordinate_px / BIN_SIZE_PX)))


def box_text(box: Box) -> str:
    """Return the four location tokens of a box (x0, y0, x1, y1) in pixels."""
    return " ".join(LOCATION_TOKENS[to_bin(coordinate)] for coordinate in box)
