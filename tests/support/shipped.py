"""The checkpoint and the pictures that ship with the package."""

from __future__ import annotations

from pathlib import Path

import feather_edge

ASSETS = Path(feather_edge.__file__).parent / "assets"
CHECKPOINT = ASSETS / "scene_vlm"
SCENES = ASSETS / "scenes"
