"""What an evaluation asks: generated scenes, or the entries of a user's file.

A sample is one picture with its questions. A question has an answer in words (coarse), or a box
(localisation).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from feather_edge.errors import RequestError
from feather_edge.evaluate.scenes import unseen_scenes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from feather_edge.evaluate.scenes import Split
    from feather_edge.images.geometry import Box

__all__ = ["Kind", "Question", "Sample", "Task", "load_task", "of_kind"]

Kind = Literal["localisation", "coarse"]
SceneSplit = Literal["development", "test"]
NUM_SCENES = 500
NAMES = ("scenes", "refcoco", "coarse")
SUFFIXES = (".jsonl", ".json")


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
    def kind(self) -> Kind:
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


def load_task(
    task: str,
    *,
    data: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    images: Path | None = None,
    truth_boxes: str | None = None,
    ask: str | None = None,
) -> Task:
    """Return a task.

    Args:
        task: ``scenes``: generated pictures with questions of both kinds; ``coarse``: only the
            questions with an answer in words, of the scenes or of ``data``; ``refcoco``: only
            those for a place, of ``data``; or a ``.json`` or ``.jsonl`` file, all of it. What
            files may hold is said in ``feather_edge.evaluate.task_files``.
        data: file of ``refcoco`` or ``coarse``.
        split: of the scenes, ``development`` or ``test`` (None); of a file, only the entries whose
            ``split`` says so.
        limit: take only the first samples; for scenes also more than 500.
        images: folder of a file's pictures; None is the file's own.
        truth_boxes: how a file writes boxes; None is pixels.
        ask: question about an expression, with ``{}`` in its place.

    Raises:
        RequestError: naming file and entry of what cannot be used, or an option without effect.
    """
    kinds: dict[str, Kind] = {"refcoco": "localisation", "coarse": "coarse"}
    kind = kinds.get(task)
    file = _file_of(task, data)
    if file is not None:
        from feather_edge.evaluate.task_files import FileOptions, read_task

        options = FileOptions.of(split=split, images=images, truth_boxes=truth_boxes, ask=ask)
        return read_task(file, options, kind=kind, limit=limit)
    given = {"images": images, "truth-boxes": truth_boxes, "ask": ask}
    for name, value in given.items():
        if value is not None:
            raise RequestError(
                f"{name} {value} has no effect: task {task} is generated; leave it out, or give a "
                f"file of your own"
            )
    return _scenes(task, kind, split, NUM_SCENES if limit is None else limit)


def of_kind(samples: Iterable[Sample], kind: Kind | None) -> Iterator[Sample]:
    """Yield samples with their questions of one kind, those that have any; None is every kind."""
    for sample in samples:
        questions = tuple(each for each in sample.questions if kind in {None, each.kind})
        if questions:
            yield dataclasses.replace(sample, questions=questions)


def _file_of(task: str, data: Path | None) -> Path | None:
    """Return the file that a task reads, None for generated scenes."""
    if task not in NAMES and Path(task).suffix not in SUFFIXES:
        raise RequestError(
            f"task {task!r} is unknown; choose {', '.join(NAMES)}, or give the path of a .jsonl "
            f"or .json file"
        )
    if task in {"refcoco", "coarse"} and data is not None:
        return data
    if data is not None:
        raise RequestError(
            f"data {data} has no effect: task {task} asks something else; give it with refcoco or "
            f"coarse, or as the task itself"
        )
    if task == "refcoco":
        raise RequestError(
            "task refcoco asks for places in pictures of yours; give its file with --data FILE"
        )
    return None if task in NAMES else Path(task)


def _scenes(name: str, kind: Kind | None, split: str | None, num_scenes: int) -> Task:
    split = "test" if split is None else split
    if split not in get_args(SceneSplit):
        raise RequestError(f"scenes have no split {split!r}; choose development or test")
    samples = []
    for index, (scene, questions) in enumerate(unseen_scenes(cast("Split", split), num_scenes)):
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
    digest = f"{split} {kind}" if kind else split
    return Task(name=name, digest=digest, samples=tuple(of_kind(samples, kind)))
