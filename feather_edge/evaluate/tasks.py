"""What an evaluation asks: generated scenes, or the lines of a user's file.

A sample is one picture with its questions. A question has an answer in words (coarse), or a box
(localisation).
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from feather_edge.errors import RequestError
from feather_edge.evaluate.scenes import Split, unseen_scenes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from feather_edge.images.geometry import Box

__all__ = ["Question", "Sample", "Task", "load_task"]

SCENE_TASKS: dict[str, Split] = {"scenes": "test", "scenes-development": "development"}
NUM_SCENES = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question with its truth.

    Attributes:
        text: what is asked.
        answer: the right word; None for a question that asks for a place.
        box: the right place in pixels of the picture on disk; None for a word.
        topic: a name under which accuracies are also told apart.
    """

    text: str
    answer: str | None = None
    box: Box | None = None
    topic: str | None = None

    @property
    def kind(self) -> Literal["localisation", "coarse"]:
        """What the question measures."""
        return "coarse" if self.box is None else "localisation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One picture, as a path or as uint8 [H, W, 3], and what is asked about it."""

    name: str
    image: Path | NDArray[np.uint8]
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Samples, and a ``digest`` that differs when the same name stands for other questions."""

    name: str
    digest: str
    samples: tuple[Sample, ...]


def load_task(task: str, *, limit: int | None = None) -> Task:
    """Return a task.

    Args:
        task: ``scenes`` (500 of the test split), ``scenes-development``, or a ``.jsonl`` file
            whose lines are ``{"image", "question", "answer"}`` or ``{"image", "question",
            "box": [x0, y0, x1, y1]}``; images are relative to the file, boxes in their pixels. A
            ``"topic"`` tells accuracies apart; other keys are left alone.
        limit: take only the first samples; for scenes also more than 500.

    Raises:
        RequestError: naming file and line of what cannot be used.
    """
    if task in SCENE_TASKS:
        return _scenes(task, NUM_SCENES if limit is None else limit)
    path = Path(task)
    if path.suffix != ".jsonl":
        raise RequestError(
            f"task {task!r} is unknown; choose {' or '.join(SCENE_TASKS)}, or give the path of a "
            f".jsonl file"
        )
    return _read_lines(path, limit)


def _scenes(task: str, num_scenes: int) -> Task:
    split = SCENE_TASKS[task]
    samples = []
    for index, (scene, questions) in enumerate(unseen_scenes(split, num_scenes)):
        asked = tuple(
            Question(
                text=question.text,
                answer=question.answer if question.box is None else None,
                box=question.box,
                topic=question.kind,
            )
            for question in questions
        )
        samples.append(Sample(name=f"{split}/{index}", image=scene.image, questions=asked))
    return Task(name=task, digest=split, samples=tuple(samples))


def _read_lines(path: Path, limit: int | None) -> Task:
    try:
        data = path.read_bytes()
        lines = data.decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read: {error}; give a file of JSON lines") from error
    samples: list[Sample] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            samples.append(_sample(path, number, line))
    if not samples:
        raise RequestError(f"{path} has no lines; give one JSON object a line")
    digest = hashlib.sha256(data).hexdigest()
    return Task(name=path.name, digest=digest, samples=tuple(samples[:limit]))


def _sample(path: Path, number: int, line: str) -> Sample:
    place = f"{path}, line {number}"
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise RequestError(f"{place}: not valid JSON: {error}") from None
    if not isinstance(entry, dict):
        raise RequestError(f'{place}: must be an object such as {{"image": ..., "question": ...}}')
    for key in ("image", "question", *(["topic"] if "topic" in entry else [])):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise RequestError(f"{place}: {key!r} is {entry.get(key)!r}; it must be a text")
    image = path.parent / entry["image"]
    if not image.is_file():
        raise RequestError(f"{place}: image {image} does not exist; paths start at the file")
    return Sample(name=f"{path.name}:{number}", image=image, questions=(_question(place, entry),))


def _question(place: str, entry: dict[str, Any]) -> Question:
    if ("answer" in entry) == ("box" in entry):
        raise RequestError(f"{place}: give 'answer' or 'box', exactly one of them")
    if "answer" in entry:
        answer = entry["answer"]
        if not isinstance(answer, str) or not answer.strip():
            raise RequestError(f"{place}: 'answer' is {answer!r}; it must be a text")
        return Question(text=entry["question"], answer=answer, topic=entry.get("topic"))
    box = _box(place, entry["box"])
    return Question(text=entry["question"], box=box, topic=entry.get("topic"))


def _box(place: str, value: Any) -> Box:
    is_numbers = isinstance(value, list) and all(
        isinstance(each, int | float) and not isinstance(each, bool) and math.isfinite(each)
        for each in value
    )
    if not is_numbers or len(value) != 4 or value[0] >= value[2] or value[1] >= value[3]:
        raise RequestError(
            f"{place}: 'box' is {value!r}; it must be [x0, y0, x1, y1] in pixels, x0 < x1, y0 < y1"
        )
    return (float(value[0]), float(value[1]), float(value[2]), float(value[3]))
