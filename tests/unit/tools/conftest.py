"""What tests of the tools share."""

from __future__ import annotations

from pathlib import Path

import pytest

SCENE_VLM = Path(__file__).parents[3] / "tools" / "scene_vlm"


@pytest.fixture
def _scene_vlm_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test import the scripts of `tools/scene_vlm`, as they import one another."""
    monkeypatch.syspath_prepend(SCENE_VLM)
