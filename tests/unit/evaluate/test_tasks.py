from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from feather_edge.errors import RequestError
from feather_edge.evaluate.scenes import unseen_scenes
from feather_edge.evaluate.tasks import load_task

PLACE = {"image": "a.png", "question": "where is it?", "box": [1, 2, 30, 40]}
WORD = {"image": "a.png", "question": "what is it?", "answer": "red", "topic": "colour", "id": 7}


def write(folder: Path, *lines: Any) -> str:
    Image.new("RGB", (50, 50)).save(folder / "a.png")
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "asked.jsonl").write_text(text + "\n", encoding="utf-8")
    return str(folder / "asked.jsonl")


def test_lines_become_samples(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, PLACE, "", WORD))
    assert task.name == "asked.jsonl"
    assert [sample.name for sample in task.samples] == ["asked.jsonl:1", "asked.jsonl:3"]
    place, word = (sample.questions[0] for sample in task.samples)
    assert (place.kind, place.box) == ("localisation", (1, 2, 30, 40))
    assert (word.kind, word.answer, word.topic) == ("coarse", "red", "colour")
    assert task.samples[0].image == tmp_path / "a.png"


def test_a_limit_takes_the_first_and_another_file_has_another_digest(tmp_path: Path) -> None:
    first = load_task(write(tmp_path, PLACE, WORD), limit=1)
    assert len(first.samples) == 1
    assert load_task(write(tmp_path, WORD, PLACE), limit=1).digest != first.digest


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{", "not valid JSON"),
        ("[1]", "must be an object"),
        ({**PLACE, "image": 3}, "'image' is 3; it must be a text"),
        ({"image": "a.png", "answer": "x"}, "'question' is None; it must be a text"),
        ({**PLACE, "topic": ""}, "'topic' is ''; it must be a text"),
        ({**PLACE, "image": "b.png"}, "b.png does not exist; paths start at the file"),
        ({"image": "a.png", "question": "?"}, "nothing to ask; give 'question' with 'answer' or"),
        ({"image": "a.png", "box": [1, 2, 3, 4]}, "'question' is None; it must be a text"),
        ({"image": ["a.png", "a.png"], "question": "?"}, "the path of one picture"),
        ({"image": "a.png", "conversations": ["hi"]}, "turn 'hi' must be an object"),
        ({"image": "a.png", "messages": [{"role": "user"}]}, "says nothing; give 'value'"),
        ({**PLACE, "answer": "x"}, "give 'answer' or 'box', exactly one"),
        ({**WORD, "answer": " "}, "'answer' is ' '; it must be a text"),
        ({**PLACE, "box": [1, 2, 3]}, "'box' is [1, 2, 3]; it must be [x0, y0, x1, y1]"),
        ({**PLACE, "box": [9, 2, 3, 4]}, "x0 < x1"),
        ({**PLACE, "box": [1, 2, True, 4]}, "it must be [x0, y0, x1, y1]"),
        ({**PLACE, "box": "1 2 3"}, "it must be [x0, y0, x1, y1]"),
        ({**PLACE, "box": [0.1, 0.2, 0.5, 0.6]}, "larger than a pixel; other ways to write boxes"),
    ],
)
def test_a_bad_line_is_named(line: Any, text: str, tmp_path: Path) -> None:
    path = write(tmp_path, PLACE, line)
    with pytest.raises(RequestError) as error:
        load_task(path)
    assert str(error.value).startswith(f"{path}, line 2: ")
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ("gqa", "task 'gqa' is unknown; choose scenes, refcoco, coarse, or give the path"),
        (
            "refcoco",
            "task refcoco asks for places in pictures of yours; give its file with --data",
        ),
        ("no.jsonl", "no.jsonl cannot be read"),
    ],
)
def test_a_task_that_is_not_there(task: str, text: str) -> None:
    with pytest.raises(RequestError, match=text):
        load_task(task)


def test_an_empty_file_is_no_task(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(RequestError, match="empty.jsonl has no entries; give one JSON object"):
        load_task(str(tmp_path / "empty.jsonl"))


def test_scenes_are_those_of_the_test_split() -> None:
    task = load_task("scenes", limit=2)
    scenes = list(unseen_scenes("test", 2))
    for sample, (scene, questions) in zip(task.samples, scenes, strict=True):
        assert np.array_equal(sample.image, scene.image)
        assert [asked.text for asked in sample.questions] == [asked.text for asked in questions]
        assert sample.questions[0].kind == "localisation"
    other = load_task("scenes", split="development", limit=1)
    assert other.digest != task.digest
    assert not np.array_equal(other.samples[0].image, scenes[0][0].image)
    with pytest.raises(RequestError, match="scenes have no split 'train'; choose development or"):
        load_task("scenes", split="train")


def test_coarse_leaves_places_out(tmp_path: Path) -> None:
    task = load_task("coarse", limit=3)
    assert {q.kind for sample in task.samples for q in sample.questions} == {"coarse"}
    assert (task.name, len(task.samples)) == ("coarse", 3)
    path = Path(write(tmp_path, PLACE, WORD, PLACE))
    assert [s.name for s in load_task("coarse", data=path).samples] == ["asked.jsonl:2"]
    places = load_task("refcoco", data=path)
    assert [s.name for s in places.samples] == ["asked.jsonl:1", "asked.jsonl:3"]
    assert len(load_task("refcoco", data=path, limit=1).samples) == 1
    with pytest.raises(RequestError, match="asked.jsonl has no coarse questions; give"):
        load_task("coarse", data=Path(write(tmp_path, PLACE)))


@pytest.mark.parametrize(
    ("task", "options", "text"),
    [
        ("scenes", {"ask": "Find {}."}, "ask Find {}. has no effect: task scenes is generated"),
        ("coarse", {"truth_boxes": "xywh"}, "truth-boxes xywh has no effect: task coarse is"),
        ("scenes", {"data": Path("a.json")}, "data a.json has no effect: task scenes asks"),
        ("b.json", {"data": Path("a.json")}, "data a.json has no effect: task b.json asks"),
        ("b.json", {"ask": "Find it."}, "ask 'Find it.' must have {} once"),
        ("b.json", {"truth_boxes": "yolo"}, "truth-boxes 'yolo' is unknown; choose pixels, xywh"),
        ("b.json", {"images": Path("nowhere")}, "images nowhere is no folder"),
    ],
)
def test_options_that_cannot_be(task: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(RequestError) as error:
        load_task(task, **options)
    assert str(error.value).startswith(text)
