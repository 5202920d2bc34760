"""The demo: the shipped model answers shipped scenes, with all its visual tokens and with few."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import platformdirs

from feather_edge.checkpoint.source import resolve_checkpoint
from feather_edge.evaluate.boxes import intersection_over_union, parse_location_tokens
from feather_edge.export.pipeline import export
from feather_edge.images import load_image
from feather_edge.pruning import Pruning
from feather_edge.recipes import load_recipe
from feather_edge.runtime.session import Session
from feather_edge.viz import Panel, contact_sheet, kept_tokens, token_maps

if TYPE_CHECKING:
    from PIL import Image

    from feather_edge.export.writer import Progress
    from feather_edge.images.geometry import Box
    from feather_edge.runtime.result import Result

RECIPE = "scene-vlm"
SCENES = Path(__file__).parent / "assets" / "scenes"
NUM_SCENES = 3
NUM_REPEATS = 11
NUM_BINS = 28
"""Location tokens per axis in the shipped model's vocabulary."""

PANEL_SIZE = 400
"""Longer side of a drawn scene in pixels."""

TRUTH_COLOUR, ANSWER_COLOUR = "#ffffff", "#ff2fd0"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One scene answered once: unpruned or pruned; times are medians of ``NUM_REPEATS`` runs."""

    result: Result
    box: Box | None
    iou: float
    ttft_ms: float
    prefill_ms: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "text": self.result.text,
            "box": self.box,
            "iou": self.iou,
            "num_kept": [stage.num_kept for stage in self.result.stages],
            "ttft_ms": self.ttft_ms,
            "prefill_ms": self.prefill_ms,
        }


@dataclass(frozen=True, kw_only=True)
class SceneReport:
    """One scene: question, truth, and both answers."""

    file: str
    question: str
    box: Box
    unpruned: Answer
    pruned: Answer

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "file": self.file,
            "question": self.question,
            "box": self.box,
            "unpruned": self.unpruned.to_dict(),
            "pruned": self.pruned.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """Everything ``feather-edge demo`` prints."""

    bundle: Path
    picture: Path
    num_visual_tokens: int
    scenes: tuple[SceneReport, ...]

    @property
    def prefill_ratio(self) -> float:
        """Prefill time pruned by unpruned, median over the scenes."""
        return statistics.median(s.pruned.prefill_ms / s.unpruned.prefill_ms for s in self.scenes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "bundle": str(self.bundle),
            "picture": str(self.picture),
            "num_visual_tokens": self.num_visual_tokens,
            "prefill_ratio": self.prefill_ratio,
            "scenes": [scene.to_dict() for scene in self.scenes],
        }


def run_demo(
    *, output: Path, backend: str = "auto", on_progress: Progress | None = None
) -> DemoReport:
    """Export the shipped model to the cache, answer scenes, and draw the kept tokens.

    Args:
        output: PNG to write.
        backend: what runs the graphs.
        on_progress: see ``feather_edge.export.pipeline.export``.

    Raises:
        BackendError: if no backend is installed.
        BundleError: if the cache folder cannot be written.
    """
    folder = cache_folder() / "demo"
    checkpoint = resolve_checkpoint("demo")
    export(checkpoint, folder, load_recipe(RECIPE), force=True, on_progress=on_progress)
    with Session.open(folder, backend=backend) as session:
        scenes = tuple(_answer_scene(session, entry) for entry in _localisation_scenes())
        num_visual_tokens = scenes[0].pruned.result.num_visual_tokens
        rows = [_panels(session, scene) for scene in scenes]
    contact_sheet(rows).save(output, format="PNG")
    return DemoReport(
        bundle=folder, picture=output, num_visual_tokens=num_visual_tokens, scenes=scenes
    )


def cache_folder() -> Path:
    """Return the user's cache folder for feather-edge."""
    return platformdirs.user_cache_path("feather-edge", appauthor=False)


def _localisation_scenes() -> list[dict[str, Any]]:
    """Return the first shipped scenes with their first "where is" question."""
    chosen = []
    for scene in json.loads((SCENES / "scenes.json").read_text(encoding="utf-8")):
        for question in scene["questions"]:
            if question["kind"] == "localisation":
                chosen.append({"file": scene["file"], **question})
                break
    return chosen[:NUM_SCENES]


def _answer_scene(session: Session, entry: dict[str, Any]) -> SceneReport:
    image = load_image(SCENES / entry["file"])
    truth: Box = tuple(entry["box"])
    asked = {"unpruned": Pruning(criterion="none"), "pruned": session.pruning}
    runs: dict[str, list[Result]] = {name: [] for name in asked}
    for _ in range(1 + NUM_REPEATS):  # interleaved; the first round warms up
        for name, pruning in asked.items():
            runs[name].append(session.generate(image, entry["question"], pruning=pruning))
    answers = {name: _judge(results[1:], truth, image) for name, results in runs.items()}
    return SceneReport(file=entry["file"], question=entry["question"], box=truth, **answers)


def _judge(results: list[Result], truth: Box, image: Image.Image) -> Answer:
    size = (image.height, image.width)
    box = parse_location_tokens(results[0].text, num_bins=NUM_BINS, image_size=size)
    return Answer(
        result=results[0],
        box=box,
        iou=0.0 if box is None else intersection_over_union(box, truth),
        ttft_ms=statistics.median(result.ttft_ms for result in results),
        prefill_ms=statistics.median(result.prefill_ms for result in results),
    )


def _panels(session: Session, scene: SceneReport) -> list[Panel]:
    images, picture = session.bundle.manifest.image, load_image(SCENES / scene.file)
    view = images.view(picture)
    rasters = scene.unpruned.result.rasters
    (tokens,) = token_maps(rasters, images.geometry(picture.size), size=PANEL_SIZE)
    every = np.arange(scene.unpruned.result.num_visual_tokens)
    panels = []
    steps = [("all tokens", every, scene.unpruned)]
    steps += [
        (f"before layer {stage.before_layer}", stage.kept_indices, scene.pruned)
        for stage in scene.pruned.result.stages
    ]
    for title, kept, answer in steps:
        boxes = [(scene.box, TRUTH_COLOUR)]
        if answer.box is not None:
            boxes.append((answer.box, ANSWER_COLOUR))
        panels.append(
            Panel(
                picture=kept_tokens(view, kept, tokens=tokens, boxes=boxes),
                title=f"{title}: {len(kept)} of {len(every)}",
                subtitle=f"{scene.question}  IoU {answer.iou:.2f}",
            )
        )
    return panels
