"""The commands one after another, on a tiny random checkpoint."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from support.checkpoints import tiny_llava

from feather_edge.cli import main

if TYPE_CHECKING:
    from pathlib import Path

QUESTION = ("--prompt", "hi", "--max-new-tokens", "4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, a picture and a bundle exported by the command."""
    folder = tmp_path_factory.mktemp("command-line")
    tiny_llava(folder / "checkpoint", num_layers=4)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    checkpoint, bundle = str(folder / "checkpoint"), str(folder / "bundle")
    result = CliRunner().invoke(main, ["export", checkpoint, "-o", bundle], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(bundle)
    return folder


def invoke(*arguments: str | Path, status: int = 0) -> str:
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    assert result.exit_code == status, result.output
    return result.stdout if status == 0 else result.stderr


def test_a_bundle_is_not_overwritten_by_accident(folder: Path) -> None:
    again = ("export", folder / "checkpoint", "-o", folder / "bundle")
    assert "already exists; overwrite it with --force" in invoke(*again, status=1)
    invoke(*again, "--force")


def test_inspect_shows_every_part(folder: Path) -> None:
    out = invoke("inspect", folder / "bundle")
    for text in (
        "stages = [1, 2]", "vision_encoder", "decoder_0", "decoder_1", "decoder_2",
        "past_key_values.3.key", "batch, sequence", "GFLOPs", "onnx/embed_tokens.safetensors",
    ):  # fmt: skip
        assert text in out


def test_inspect_json(folder: Path) -> None:
    document = json.loads(invoke("inspect", folder / "bundle", "--json", "--prompt-tokens", "9"))
    assert document["prefill"]["num_text_tokens"] == 9
    assert [graph["name"] for graph in document["graphs"]] == [
        "vision_encoder", "decoder_0", "decoder_1", "decoder_2",
    ]  # fmt: skip


def test_run_streams_what_the_record_says(folder: Path) -> None:
    ask = ("run", folder / "bundle", "--image", folder / "a.png", *QUESTION)
    record = json.loads(invoke(*ask, "--json"))
    assert invoke(*ask) == record["text"] + "\n"
    assert record["num_visual_tokens"] == 16
    assert len(record["stages"]) == 2


def test_run_prunes_as_asked(folder: Path) -> None:
    ask = ("run", folder / "bundle", "--image", folder / "a.png", *QUESTION, "--json")
    record = json.loads(invoke(*ask, "--prune", "uniform", "--keep-ratio", "0.5,0.25"))
    assert [stage["num_kept"] for stage in record["stages"]] == [8, 4]
    assert {stage["criterion"] for stage in record["stages"]} == {"uniform"}
    unpruned = json.loads(invoke(*ask, "--prune", "none"))
    assert unpruned["reason"]


def test_a_picture_that_is_none_is_one_line(folder: Path) -> None:
    (folder / "b.png").write_text("no picture")
    text = invoke("run", folder / "bundle", "--image", folder / "b.png", *QUESTION, status=1)
    assert "cannot be read as an image" in text
    assert text.count("\n") == 1
