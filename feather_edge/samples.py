"""Questions about pictures that ship with the package, for whatever needs something to ask."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from feather_edge.images.pixels import ImageSource

__all__ = ["Sample", "shipped_samples"]

SCENES = Path(__file__).parent / "assets" / "scenes"
NUM_SCENES = 2


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A question about an image."""

    name: str
    image: ImageSource
    prompt: str


def shipped_samples(num_scenes: int = NUM_SCENES) -> tuple[Sample, ...]:
    """Return the first shipped scenes, each with its first question."""
    scenes = json.loads((SCENES / "scenes.json").read_text(encoding="utf-8"))[:num_scenes]
    return tuple(
        Sample(
            name=scene["file"],
            image=SCENES / scene["file"],
            prompt=scene["questions"][0]["question"],
        )
        for scene in scenes
    )
