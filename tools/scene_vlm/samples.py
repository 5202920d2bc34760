"""Write the sample scenes that ship with the package, with questions and answers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image

from feather_edge.evaluate.scenes import COARSE_KINDS, Question, Scene, ask, make_scene, scene_rng

_NUM_PLACES = 3


def sample_scene(index: int) -> tuple[Scene, list[Question]]:
    """Return one scene of 3 to 8 objects and different questions about it."""
    rng = scene_rng("samples", index)
    scene = make_scene(rng, num_objects=3 + index % 6)
    asked = [ask(scene.objects, "localisation", rng) for _ in range(4 * _NUM_PLACES)]
    places = {question.text: question for question in asked if question is not None}
    coarse = [ask(scene.objects, kind, rng) for kind in COARSE_KINDS]
    questions = [question for question in coarse if question is not None]
    return scene, [*list(places.values())[:_NUM_PLACES], *questions]


def describe(question: Question) -> dict[str, object]:
    """Return the JSON form of a question; boxes are (x0, y0, x1, y1) in pixels."""
    record: dict[str, object] = {
        "question": question.text,
        "kind": question.kind,
        "answer": question.answer,
    }
    if question.box is not None:
        record["box"] = [round(value, 1) for value in question.box]
    return record


def main() -> None:
    """Parse options and write NN.png files with scenes.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--num-scenes", type=int, default=20)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    records = []
    for index in range(options.num_scenes):
        scene, questions = sample_scene(index)
        name = f"{index:02d}.png"
        Image.fromarray(scene.image).save(options.output / name)
        records.append({"file": name, "questions": [describe(item) for item in questions]})
    text = json.dumps(records, indent=1) + "\n"
    (options.output / "scenes.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
