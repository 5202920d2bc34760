"""``feather-edge build-engine``: what it plans, prints and refuses, without TensorRT."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from feather_edge.cli import main
from feather_edge.cli._progress import build_progress
from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory


@pytest.fixture
def bundle(bundles: BundleFactory) -> Path:
    return bundles(recipe=ExportRecipe(precision="fp16"), num_layers=4).bundle.path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["build-engine", *map(str, arguments)])


def test_a_dry_run_prints_profiles_memory_and_commands(bundle: Path) -> None:
    result = run(bundle, "--target", "orin-nano-8gb", "--dry-run")
    assert result.exit_code == 0, result.output
    for text in (
        "target orin-nano-8gb: tensorrt 10.3", "decoder_1 (opset 18) -> ", "profile both",
        "num_kept: min [1]", "polygraphy convert",
    ):  # fmt: skip
        assert text in result.stdout
    assert not (bundle / "engines").exists()


def test_a_dry_run_as_json_with_flags(bundle: Path) -> None:
    result = run(
        bundle, "--target", "agx-thor", "--dry-run", "--json", "--profiles", "two",
        "--max-batch-size", 2, "--opset", "18", "--pool-limit", "workspace:1G,tactic_dram:1G",
    )  # fmt: skip
    document = json.loads(result.stdout)
    assert (document["target"], document["tensorrt_version"]) == ("agx-thor", "10.13")
    prefill, decode = document["engines"][1]["profiles"]
    assert prefill["inputs"]["inputs_embeds"]["max"][0] == 2
    assert decode["inputs"]["inputs_embeds"]["max"][1] == 1
    assert "--pool-limit tactic_dram:1073741824" in document["engines"][1]["command"]


def test_a_target_of_ones_own(bundle: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "my-robot.toml"
    recipe.write_text('tensorrt_version = "11.4"\n')
    document = json.loads(run(bundle, "--target", recipe, "--dry-run", "--json").stdout)
    assert document["target"] == "my-robot"
    assert {engine["opset"] for engine in document["engines"]} == {24}
    assert "engines/my-robot/decoder_0.engine" in document["engines"][1]["path"]


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--target", "orin"], 1, "recipe 'orin' is unknown"),
        (["--target", "rtx", "--plugin", "no.so"], 2, "make one with: feather-edge build-plugin"),
        (["--target", "rtx", "--pool-limit", "dla:1G"], 1, "pool_limit holds 'dla:1G'"),
        (["--target", "rtx", "--max-keep-ratio", "0"], 2, "out of range"),
        ([], 2, "Missing option '--target'"),
    ],
)
def test_refused(bundle: Path, arguments: list[str], status: int, text: str) -> None:
    result = run(bundle, *arguments)
    assert result.exit_code == status
    assert text in result.stderr.replace("\n", " ")


def test_auto_takes_a_plugin_if_there_is_one(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = (bundle, "--target", "agx-thor", "--plugin", "auto", "--dry-run")
    assert "--plugins" not in run(*arguments).stdout
    library = tmp_path / "engines" / "out" / "libfeather_edge_plugin.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"code")
    assert f"--plugins {library}" in run(*arguments).stdout


def test_progress_is_drawn_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with build_progress() as on_phase:
        assert on_phase is None
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with build_progress() as on_phase:
        assert on_phase is not None
        on_phase("decoder_0", "Timing tactics", 1, 3)
        on_phase("decoder_0", "Timing tactics", 3, 3)
    assert "decoder_0" in screen.getvalue()
