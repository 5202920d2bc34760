"""Ask a saved checkpoint about unseen scenes, through transformers' own `generate`."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from feather_edge.evaluate.answers import BoxReader
from feather_edge.evaluate.boxes import intersection_over_union
from feather_edge.evaluate.scenes import (
    IMAGE_SIZE_PX,
    KINDS,
    LOCATION_TOKENS,
    NUM_BINS,
    Kind,
    Question,
    Split,
    unseen_scenes,
)
from feather_edge.evaluate.statistics import wilson_interval
from feather_edge.images import ViewGeometry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import BatchFeature, ProcessorMixin


LOCATION_READER = BoxReader(box_format="location-tokens", num_bins=NUM_BINS)
NUMBER_READER = BoxReader(box_format="0-100")
SCENE_GEOMETRY = ViewGeometry(
    scale=(1.0, 1.0), offset=(0.0, 0.0), view_size=(IMAGE_SIZE_PX, IMAGE_SIZE_PX)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One question, what the model said, and the score in 0..1 (IoU for a place)."""

    question: Question
    text: str
    score: float

    @property
    def is_right(self) -> bool:
        """Whether the answer counts: IoU of at least 0.5, or the very word."""
        return self.score >= 0.5


def score(question: Question, text: str, reader: BoxReader = LOCATION_READER) -> float:
    """Return the IoU of a place, or 1 for the right word."""
    if question.box is None:
        return float(text.strip() == question.answer)
    said = reader.read(text, SCENE_GEOMETRY)
    return 0.0 if said is None else intersection_over_union(said, question.box)


def prepare(processor: ProcessorMixin, pairs: Sequence[tuple[np.ndarray, str]]) -> BatchFeature:
    """Return the inputs of (image, question) pairs, one batch."""
    prompts = []
    for _, text in pairs:
        content = [{"type": "image"}, {"type": "text", "text": text}]
        message = [{"role": "user", "content": content}]
        prompts.append(processor.apply_chat_template(message, add_generation_prompt=True))
    images = [Image.fromarray(image) for image, _ in pairs]
    return processor(text=prompts, images=images, padding=True, return_tensors="pt")


@torch.inference_mode()
def answer(
    model: LlavaForConditionalGeneration,
    processor: ProcessorMixin,
    pairs: Sequence[tuple[np.ndarray, str]],
) -> list[str]:
    """Return greedy answers to (image, question) pairs, one batch."""
    inputs = prepare(processor, pairs)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    produced = model.generate(**inputs)
    produced = produced[:, inputs["input_ids"].shape[1] :]
    return list(processor.batch_decode(produced, skip_special_tokens=True))


def evaluate(
    folder: Path, *, split: Split, num_scenes: int, batch_size: int, kinds: Sequence[Kind] = KINDS
) -> list[Outcome]:
    """Return the outcome of every question of some kinds about num_scenes scenes of a split."""
    processor = AutoProcessor.from_pretrained(folder)
    # Boxes come in location tokens where the model has them, else in per cent.
    has_tokens = LOCATION_TOKENS[0] in processor.tokenizer.get_vocab()
    reader = LOCATION_READER if has_tokens else NUMBER_READER
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    items = [
        (scene.image, question)
        for scene, questions in unseen_scenes(split, num_scenes)
        for question in questions
        if question.kind in kinds
    ]
    outcomes = []
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        texts = answer(model, processor, [(image, question.text) for image, question in batch])
        for (_, question), text in zip(batch, texts, strict=True):
            right = score(question, text, reader)
            outcomes.append(Outcome(question=question, text=text, score=right))
    return outcomes


def summarise(outcomes: Sequence[Outcome]) -> dict[str, dict[str, object]]:
    """Return accuracy with interval per kind and for all coarse kinds together."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.question.kind].append(outcome)
        if outcome.question.box is None:
            groups["coarse (all)"].append(outcome)
    summary: dict[str, dict[str, object]] = {}
    for name, group in groups.items():
        right = sum(outcome.is_right for outcome in group)
        low, high = wilson_interval(right, len(group))
        summary[name] = {
            "accuracy": round(right / len(group), 4),
            "interval_95": [round(low, 4), round(high, 4)],
            "num_questions": len(group),
        }
    places = [outcome.score for outcome in groups["localisation"]]
    if places:
        summary["localisation"]["mean_iou"] = round(float(np.mean(places)), 4)
    return summary


def main() -> None:
    """Parse options, evaluate, and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="folder written by train.py")
    parser.add_argument("--split", choices=("development", "test"), default="development")
    parser.add_argument("--num-scenes", type=int, default=500)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--show-errors", type=int, default=0, help="print this many wrong answers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    outcomes = evaluate(
        options.checkpoint,
        split=options.split,
        num_scenes=options.num_scenes,
        batch_size=options.batch_size,
        kinds=options.kinds,
    )
    wrong = [outcome for outcome in outcomes if not outcome.is_right]
    report = {"split": options.split, "num_scenes": options.num_scenes, **summarise(outcomes)}
    report["wrong"] = [
        f"{item.question.text} said {item.text!r}, is {item.question.answer!r}"
        for item in wrong[: options.show_errors]
    ]
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
