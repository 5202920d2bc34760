"""The demo, as a newcomer runs it: the shipped model, the shipped scenes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from PIL import Image
from support.shipped import SCENES

from feather_edge.cli import main

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("demo")
    picture = folder / "kept.png"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        result = CliRunner().invoke(main, ["demo", "--json", "-o", str(picture)])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), picture


def test_the_demo_finds_the_things_with_all_tokens_and_with_few(demo: tuple[dict, Path]) -> None:
    report, _ = demo
    assert len(report["scenes"]) == 3
    for scene in report["scenes"]:
        assert scene["unpruned"]["iou"] >= 0.5
        assert scene["pruned"]["iou"] >= 0.5
        first, second = scene["pruned"]["num_kept"]
        assert report["num_visual_tokens"] > first > second
        assert scene["unpruned"]["num_kept"] == [196, 196]


def test_the_demo_draws_a_row_of_panels_for_each_scene(demo: tuple[dict, Path]) -> None:
    _, picture = demo
    with Image.open(picture) as sheet:
        assert sheet.width > 3 * 400
        assert sheet.height > 3 * 400


def test_twenty_scenes_ship_with_their_answers() -> None:
    scenes = json.loads((SCENES / "scenes.json").read_text(encoding="utf-8"))
    assert len(scenes) == 20
    for scene in scenes:
        with Image.open(SCENES / scene["file"]) as image:
            assert image.size == (112, 112)
        kinds = {question["kind"] for question in scene["questions"]}
        assert "localisation" in kinds
        assert kinds <= {"localisation", "colour", "shape", "presence", "count"}
