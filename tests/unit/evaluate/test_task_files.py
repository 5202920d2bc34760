"""Files as RefCOCO, LLaVA and Qwen dumps have them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from feather_edge.errors import RequestError
from feather_edge.evaluate.tasks import load_task

if TYPE_CHECKING:
    from pathlib import Path

    from feather_edge.evaluate.tasks import Sample

WIDTH, HEIGHT = 200, 100
BOX = (20.0, 10.0, 60.0, 50.0)
COCO = "COCO_train2014_000000581857"


def read(folder: Path, document: Any, **options: Any) -> tuple[Sample, ...]:
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "a.jpg")
    file = folder / "asked.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    return load_task(str(file), **options).samples


def one(folder: Path, entry: dict[str, Any], **options: Any) -> Sample:
    (sample,) = read(folder, [entry], **options)
    return sample


@pytest.mark.parametrize(
    ("entry", "truth_boxes"),
    [
        ({"image": "a.jpg", "sent": "left cup", "bbox": [20, 10, 60, 50], "height": 1}, None),
        ({"image_path": "a.jpg", "expression": "left cup", "bbox": [20, 10, 60, 50]}, "pixels"),
        ({"file_name": "a.jpg", "sentences": [{"raw": "left cup"}], "bbox": [20, 10, 40, 40]},
         "xywh"),
        ({"img_path": "a.jpg", "phrase": "left cup", "bbox": [0.1, 0.1, 0.3, 0.5]}, "0-1"),
        ({"images": ["a.jpg"], "sents": "left cup", "bbox_2d": [100, 100, 300, 500]}, "0-1000"),
        ({"image": {"path": "a.jpg"}, "sent": "left cup",
          "box": "<loc_02><loc_02><loc_07> <loc_12>"}, "location-tokens:25"),
        ({"image": "a.jpg", "question": "Describe the region.", "answer": ["left cup"],
          "bbox": [20, 10, 40, 40], "iscrowd": 0}, "xywh"),
    ],
)  # fmt: skip
def test_a_place_of_an_expression(
    tmp_path: Path, entry: dict[str, Any], truth_boxes: str | None
) -> None:
    sample = one(tmp_path, entry, truth_boxes=truth_boxes)
    (question,) = sample.questions
    assert sample.image == tmp_path / "a.jpg"
    assert question.text == "Where is left cup?"
    assert question.box == pytest.approx(BOX)


def test_every_expression_is_asked_once_in_words_of_ones_own(tmp_path: Path) -> None:
    entry = {
        "image": "a.jpg",
        "bbox": [20, 10, 60, 50],
        "sentences": [{"sent": "cup"}, {"sent": "left cup"}, {"sent": "cup"}],
    }
    sample = one(tmp_path, entry, ask="Locate {} in the image.")
    assert [question.text for question in sample.questions] == [
        "Locate cup in the image.", "Locate left cup in the image.",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "truth_boxes"),
    [
        ("[0.1, 0.1, 0.3, 0.5]", "0-1"),
        ("<ref>left cup</ref><box>(100,100),(300,500)</box>", "0-1000"),
        ('```json\n[{"bbox_2d": [20, 10, 60, 50], "label": "cup"}]\n```', "pixels"),
        ("<loc_02> <loc_02> <loc_07> <loc_12>", "location-tokens:25"),
    ],
)
@pytest.mark.parametrize("form", ["llava", "qwen", "qwen-parts"])
def test_conversations(tmp_path: Path, answer: str, truth_boxes: str, form: str) -> None:
    asked = "<image>\nWhere is the left cup?"
    entries = {
        "llava": {"image": "a.jpg", "conversations": [
            {"from": "human", "value": asked}, {"from": "gpt", "value": answer},
            {"from": "human", "value": "Which colour?"}, {"from": "gpt", "value": "Red"},
        ]},
        "qwen": {"images": ["a.jpg"], "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": asked}, {"role": "assistant", "content": answer},
            {"role": "user", "content": "Which colour?"}, {"role": "assistant", "content": "Red"},
        ]},
        "qwen-parts": {"image": "a.jpg", "messages": [
            {"role": "user", "content": [
                {"type": "image"}, {"type": "text", "text": "Where is the left cup?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            {"role": "user", "content": "Which colour?"}, {"role": "assistant", "content": "Red"},
        ]},
    }  # fmt: skip
    place, colour = one(tmp_path, entries[form], truth_boxes=truth_boxes).questions
    assert place.text == "Where is the left cup?"
    assert place.box == pytest.approx(BOX, abs=5)
    assert (colour.text, colour.answer, colour.box) == ("Which colour?", "Red", None)


@pytest.mark.parametrize("name", [f"train2014/{COCO}.jpg", f"{COCO}_16.jpg", f"{COCO}.jpg"])
def test_pictures_are_found_under_coco_s_names(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (9, 9)).save(folder / f"{COCO}.jpg")
    entry = {"file_name": name, "sent": "cup", "bbox": [1, 1, 3, 3]}
    assert one(tmp_path, entry, images=folder).image == folder / f"{COCO}.jpg"


def test_a_list_may_lie_in_an_object_and_has_splits(tmp_path: Path) -> None:
    entry = {"image": "a.jpg", "question": "?", "answer": "x"}
    document = {"info": {}, "annotations": [entry | {"split": "val"}, entry | {"split": "testA"}]}
    assert [s.name for s in read(tmp_path, document)] == ["asked.json:1", "asked.json:2"]
    assert [s.name for s in read(tmp_path, document, split="testA")] == ["asked.json:2"]
    with pytest.raises(RequestError, match="asked.json has no entries of split 'testB'; give"):
        read(tmp_path, document, split="testB")


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"a": [], "b": []}, "asked.json must hold a list, or an object with one list in it"),
        (7, "asked.json must hold a list"),
        ([7], "asked.json, entry 1: must be an object"),
        ([], "asked.json has no entries"),
    ],
)
def test_a_document_that_is_no_task(tmp_path: Path, document: Any, text: str) -> None:
    with pytest.raises(RequestError, match=text):
        read(tmp_path, document)


@pytest.mark.parametrize(
    ("box", "truth_boxes", "text"),
    [
        ([60, 10, 20, 20], "pixels", "x0 < x1, y0 < y1; other ways to write boxes are given with"),
        ([1, 2, 3, 400], "0-1", "it must be as 0-1 says, within 0-1"),
        ([1, 2, 3, 1001], "0-1000", "within 0-1000"),
        ([1, 2, 3, 4], "location-tokens:25", "four tokens such as <loc_07>"),
    ],
)
def test_a_box_that_cannot_be(tmp_path: Path, box: list[int], truth_boxes: str, text: str) -> None:
    with pytest.raises(RequestError, match=text):
        read(tmp_path, [{"image": "a.jpg", "sent": "x", "bbox": box}], truth_boxes=truth_boxes)


def test_an_answer_with_two_boxes_is_refused(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "?"},
        {"from": "gpt", "value": "[1, 2, 3, 4] [5, 6, 7, 8]"},
    ]
    with pytest.raises(RequestError, match="holds 2 boxes; ask for one"):
        read(tmp_path, [{"image": "a.jpg", "conversations": turns}])


def test_files_read_otherwise_are_other_questions(tmp_path: Path) -> None:
    read(tmp_path, [{"image": "a.jpg", "sent": "x", "bbox": [1, 2, 30, 40]}])
    file = str(tmp_path / "asked.json")
    digests = {
        load_task(file, **options).digest
        for options in ({}, {"ask": "Find {}."}, {"truth_boxes": "xywh"})
    }
    assert len(digests) == 3
