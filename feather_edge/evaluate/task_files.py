"""Files of questions as people have them: one JSON object a line, or one JSON list.

An entry has a picture and at least one question with its truth, in one of these forms:

* ``question`` with ``answer`` (a word) or ``box``; the plainest.
* a ``bbox`` and the expressions it is the place of, as RefCOCO and its conversions have it:
  ``sent``, ``sents``, ``sentences``, ``expression``, ``phrase``, or a list under ``answer``.
* ``conversations`` (LLaVA) or ``messages`` (Qwen): each turn of the human with the answer after
  it; an answer that is a box asks for a place.

What is not listed is left alone. Which numbers a box holds is never guessed: see ``TruthBoxes``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feather_edge.errors import RequestError
from feather_edge.evaluate.tasks import Question, Sample, Task, of_kind
from feather_edge.evaluate.truth_boxes import BOX_TEXT, TruthBoxes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from feather_edge.evaluate.tasks import Kind
    from feather_edge.images.geometry import Box

__all__ = ["FileOptions", "read_task"]

ASK = "Where is {}?"
IMAGE_KEYS = ("image", "images", "image_path", "img_path", "file_name", "img")
BOX_KEYS = ("box", "bbox", "bbox_2d")
EXPRESSION_KEYS = (
    "sent", "sents", "sentence", "sentences", "expression", "expressions", "phrase", "answer",
)  # fmt: skip
HUMANS, MODELS = ("human", "user"), ("gpt", "assistant")

_ANNOTATION_SUFFIX = re.compile(r"^(COCO_\w+_\d{12})_\d+(?=\.\w+$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOptions:
    """How a file is read.

    Attributes:
        split: only entries whose ``split`` is this; None takes all.
        images: folder of the pictures; None is the file's own.
        truth_boxes: how boxes are written.
        ask: question about an expression.
    """

    split: str | None
    images: Path | None
    truth_boxes: TruthBoxes
    ask: str

    @classmethod
    def of(
        cls, *, split: str | None, images: Path | None, truth_boxes: str | None, ask: str | None
    ) -> FileOptions:
        """Return options from what was asked for; None is the default of each.

        Raises:
            RequestError: if one of them cannot be.
        """
        ask = ASK if ask is None else ask
        if ask.count("{}") != 1:
            raise RequestError(f"ask {ask!r} must have {{}} once, where the expression goes")
        if images is not None and not images.is_dir():
            raise RequestError(f"images {images} is no folder")
        boxes = TruthBoxes.of("pixels" if truth_boxes is None else truth_boxes)
        return cls(split=split, images=images, truth_boxes=boxes, ask=ask)


def read_task(
    file: Path, options: FileOptions, *, kind: Kind | None = None, limit: int | None = None
) -> Task:
    """Return what a file asks: everything, or the questions of one kind; the first samples only.

    Raises:
        RequestError: naming file and entry of what cannot be used.
    """
    try:
        data = file.read_bytes()
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file} cannot be read: {error}; give a file of JSON") from error
    places = _json_lines(file, text) if file.suffix == ".jsonl" else _json_list(file, text)
    reader = _EntryReader(file, options)
    every = (
        reader.sample(place, number, entry)
        for place, number, entry in places
        if options.split is None or entry.get("split") == options.split
    )
    samples = tuple(itertools.islice(of_kind(every, kind), limit))
    if not samples:
        what = f"no {kind} questions" if kind else "no entries"
        which = "" if options.split is None else f" of split {options.split!r}"
        raise RequestError(f"{file} has {what}{which}; give one JSON object for each picture")
    stated = f"{options.split} {options.truth_boxes.name} {options.ask} {kind}"
    digest = hashlib.sha256(data + stated.encode()).hexdigest()
    return Task(name=file.name, digest=digest, samples=samples)


def _json_lines(file: Path, text: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            place = f"{file}, line {number}"
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise RequestError(f"{place}: not valid JSON: {error}") from None
            yield place, number, _object(place, entry)


def _json_list(file: Path, text: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise RequestError(f"{file}: not valid JSON: {error}") from None
    if isinstance(document, dict):
        lists = [value for value in document.values() if isinstance(value, list)]
        document = lists[0] if len(lists) == 1 else document
    if not isinstance(document, list):
        raise RequestError(f"{file} must hold a list, or an object with one list in it")
    for number, entry in enumerate(document, start=1):
        place = f"{file}, entry {number}"
        yield place, number, _object(place, entry)


def _object(place: str, entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise RequestError(f'{place}: must be an object such as {{"image": ..., "question": ...}}')
    return entry


class _EntryReader:
    """Reads the entries of one file."""

    def __init__(self, file: Path, options: FileOptions) -> None:
        self._file = file
        self._options = options
        self._folder = file.parent if options.images is None else options.images

    def sample(self, place: str, number: int, entry: dict[str, Any]) -> Sample:
        image = self._image(place, entry)
        topic = entry.get("topic")
        if topic is not None and (not isinstance(topic, str) or not topic):
            raise RequestError(f"{place}: 'topic' is {topic!r}; it must be a text")
        questions = tuple(self._questions(place, entry, image, topic))
        if not questions:
            raise RequestError(
                f"{place}: nothing to ask; give 'question' with 'answer' or 'box', or 'bbox' with "
                f"'sent', or 'conversations'"
            )
        return Sample(name=f"{self._file.name}:{number}", image=image, questions=questions)

    def _image(self, place: str, entry: dict[str, Any]) -> Path:
        value = next((entry[key] for key in IMAGE_KEYS if key in entry), None)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, dict):
            value = value.get("path")
        if not isinstance(value, str) or not value:
            raise RequestError(
                f"{place}: 'image' is {value!r}; it must be a text, the path of one picture"
            )
        wanted = self._folder / value
        without_annotation = _ANNOTATION_SUFFIX.sub(r"\1", wanted.name)
        for path in (wanted, *(self._folder / name for name in (wanted.name, without_annotation))):
            if path.is_file():
                return path
        raise RequestError(
            f"{place}: image {wanted} does not exist; paths start at the file, or at --images"
        )

    def _questions(
        self, place: str, entry: dict[str, Any], image: Path, topic: str | None
    ) -> Iterator[Question]:
        turns = entry.get("conversations", entry.get("messages"))
        value = next((entry[key] for key in BOX_KEYS if key in entry), None)
        if isinstance(turns, list):
            yield from self._turns(place, turns, image, topic)
        elif value is not None:
            box = self._options.truth_boxes.read(place, value, image)
            for text in self._place_questions(place, entry):
                yield Question(text=text, box=box, topic=topic)
        elif "answer" in entry:
            answer = entry["answer"]
            if not isinstance(answer, str) or not answer.strip():
                raise RequestError(f"{place}: 'answer' is {answer!r}; it must be a text")
            yield Question(text=_text(place, entry, "question"), answer=answer, topic=topic)

    def _place_questions(self, place: str, entry: dict[str, Any]) -> list[str]:
        expressions = [
            text for key in EXPRESSION_KEYS if key in entry for text in _expressions(entry[key])
        ]
        if isinstance(entry.get("answer"), str) and "question" in entry:
            raise RequestError(f"{place}: give 'answer' or 'box', exactly one of them")
        if expressions:
            return [self._options.ask.format(text) for text in dict.fromkeys(expressions)]
        return [_text(place, entry, "question")]

    def _turns(
        self, place: str, turns: list[Any], image: Path, topic: str | None
    ) -> Iterator[Question]:
        said = [_turn(place, turn) for turn in turns]
        for (speaker, text), (answerer, answer) in itertools.pairwise(said):
            if speaker in HUMANS and answerer in MODELS:
                box = self._box_in(place, answer, image)
                word = answer if box is None else None
                yield Question(text=text, box=box, answer=word, topic=topic)

    def _box_in(self, place: str, answer: str, image: Path) -> Box | None:
        found = BOX_TEXT.findall(answer)
        if len(found) > 1:
            raise RequestError(f"{place}: answer {answer!r} holds {len(found)} boxes; ask for one")
        return self._options.truth_boxes.read(place, found[0], image) if found else None


def _turn(place: str, turn: Any) -> tuple[str, str]:
    """Return who says what; placeholders of pictures are no part of it."""
    if not isinstance(turn, dict):
        raise RequestError(f"{place}: turn {turn!r} must be an object")
    content = turn.get("value", turn.get("content"))
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "\n".join(part for part in parts if isinstance(part, str))
    if not isinstance(content, str):
        raise RequestError(f"{place}: turn {turn!r} says nothing; give 'value' or 'content'")
    return str(turn.get("from", turn.get("role"))), content.replace("<image>", "").strip()


def _expressions(value: Any) -> Iterator[str]:
    for each in value if isinstance(value, list) else [value]:
        text = each.get("sent", each.get("raw")) if isinstance(each, dict) else each
        if isinstance(text, str) and text.strip():
            yield text.strip()


def _text(place: str, entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise RequestError(f"{place}: {key!r} is {value!r}; it must be a text")
    return value
