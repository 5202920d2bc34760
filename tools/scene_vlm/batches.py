"""Training batches: images, dense targets, and many independent questions in one sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from vocabulary import EOS, PAD, QUESTION_LENGTH, TOKEN_IDS, encode

from feather_edge.evaluate.scenes import (
    BACKGROUND_OWNER,
    BIN_SIZE_PX,
    IMAGE_SIZE_PX,
    LOCATION_TOKENS,
    MAX_OBJECTS,
    NUM_BINS,
    PATCH_SIZE_PX,
    SHAPES,
    Kind,
    Question,
    SceneObject,
    ask,
)

if TYPE_CHECKING:
    from pool import ScenePool

IGNORED = -100
FIRST_LOCATION_ID = TOKEN_IDS[LOCATION_TOKENS[0]]
IMAGE_MEAN, IMAGE_STD = 0.5, 0.25

_KINDS: tuple[Kind, ...] = ("localisation", "presence", "count", "colour", "shape")
_KIND_WEIGHTS = (0.36, 0.2, 0.22, 0.11, 0.11)
_SOFT_BIN_STD = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBatch:
    """B images with what lies under each of their 196 patches.

    Attributes:
        pixels: float32 [B, 3, 112, 112], normalised as the processor does.
        classes: int64 [B, 196], 0 for background, else 1 + colour * shapes + shape; IGNORED where
            an object covers too little of the patch.
        boxes: float32 [B, 196, 4], box of the object under the patch, in bins.
        centres: float32 [B, 196], 1 where an object has its centre.
        objects: the objects of each image.
    """

    pixels: torch.Tensor
    classes: torch.Tensor
    boxes: torch.Tensor
    centres: torch.Tensor
    objects: list[tuple[SceneObject, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionBatch:
    """Q questions about each of B images, every one padded to L = QUESTION_LENGTH positions.

    Attributes:
        token_ids: int64 [B, Q, L].
        targets: int64 [B, Q, L], the next token at answer positions, IGNORED elsewhere.
        coordinates: float32 [B, Q, L], the next coordinate in bins, nan where none is asked.
        coarse: bool [B, Q, L], True where the next token is the answer to a coarse question.
    """

    token_ids: torch.Tensor
    targets: torch.Tensor
    coordinates: torch.Tensor
    coarse: torch.Tensor


def image_batch(pool: ScenePool, indices: np.ndarray, rng: np.random.Generator) -> ImageBatch:
    """Return the pool's images at indices, randomly mirrored, dimmed and brightened."""
    size = len(indices)
    flips = rng.random(size) < 0.5
    images = np.array(pool.images[indices])
    owners = pool.owners[indices].astype(np.int64)
    images[flips] = images[flips][:, :, ::-1]
    owners[flips] = owners[flips][:, :, ::-1]
    objects = [
        pool.objects(int(index), flipped=bool(flip))
        for index, flip in zip(indices, flips, strict=True)
    ]
    classes = np.full((size, MAX_OBJECTS + 2), IGNORED, dtype=np.int64)
    classes[:, BACKGROUND_OWNER] = 0
    boxes = np.zeros((size, MAX_OBJECTS + 2, 4), dtype=np.float32)
    centres = np.zeros((size, IMAGE_SIZE_PX // PATCH_SIZE_PX, IMAGE_SIZE_PX // PATCH_SIZE_PX))
    for row, items in enumerate(objects):
        for slot, item in enumerate(items):
            classes[row, slot] = 1 + item.colour * len(SHAPES) + item.shape
            boxes[row, slot] = np.array(item.box) / BIN_SIZE_PX
            x0, y0, x1, y1 = item.box
            column, line = int((x0 + x1) / 2 / PATCH_SIZE_PX), int((y0 + y1) / 2 / PATCH_SIZE_PX)
            centres[row, line, column] = 1.0
    owners = owners.reshape(size, -1)
    rows = np.arange(size)[:, None]
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255.0)
    gain = torch.from_numpy(rng.uniform(0.92, 1.08, (size, 1, 1, 1)).astype(np.float32))
    return ImageBatch(
        pixels=(pixels * gain).clamp_(0.0, 1.0).sub_(IMAGE_MEAN).div_(IMAGE_STD),
        classes=torch.from_numpy(classes[rows, owners]),
        boxes=torch.from_numpy(boxes[rows, owners]),
        centres=torch.from_numpy(centres.reshape(size, -1).astype(np.float32)),
        objects=objects,
    )


def question_batch(
    objects: list[tuple[SceneObject, ...]], rng: np.random.Generator, *, num_questions: int
) -> QuestionBatch:
    """Return up to num_questions different questions about each image, padded to that number."""
    shape = (len(objects), num_questions, QUESTION_LENGTH)
    token_ids = np.full(shape, TOKEN_IDS[PAD], dtype=np.int64)
    targets = np.full(shape, IGNORED, dtype=np.int64)
    coordinates = np.full(shape, np.nan, dtype=np.float32)
    coarse = np.zeros(shape, dtype=bool)
    for row, items in enumerate(objects):
        for block, question in enumerate(_questions(items, rng, num_questions)):
            prompt = encode(f"{question.text} <assistant>")
            answer = [*encode(question.answer), TOKEN_IDS[EOS]]
            first = len(prompt) - 1
            last = first + len(answer)
            token_ids[row, block, :last] = [*prompt, *answer[:-1]]
            targets[row, block, first:last] = answer
            if question.box is None:
                coarse[row, block, first] = True
            else:
                coordinates[row, block, first : last - 1] = np.array(question.box) / BIN_SIZE_PX
    return QuestionBatch(
        token_ids=torch.from_numpy(token_ids),
        targets=torch.from_numpy(targets),
        coordinates=torch.from_numpy(coordinates),
        coarse=torch.from_numpy(coarse),
    )


def soft_bins(coordinates: torch.Tensor) -> torch.Tensor:
    """Return a distribution over bins around each coordinate (in bins), [..., NUM_BINS]."""
    centres = torch.arange(NUM_BINS) + 0.5
    distances = (centres - coordinates[..., None]) / _SOFT_BIN_STD
    return torch.softmax(-0.5 * distances.square(), dim=-1)


def _questions(
    objects: tuple[SceneObject, ...], rng: np.random.Generator, num_questions: int
) -> list[Question]:
    found: dict[str, Question] = {}
    for choice in rng.choice(len(_KINDS), size=2 * num_questions, p=_KIND_WEIGHTS):
        question = ask(objects, _KINDS[int(choice)], rng)
        if question is not None:
            found[question.text] = question
        if len(found) == num_questions:
            break
    return list(found.values())
