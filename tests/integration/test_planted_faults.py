"""Faults of every kind, sealed so that no hash shows them: `verify` finds each and names it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from support.fake_engines import TARGET, bundle_with_engines
from support.faults import (
    late_positions,
    other_stride,
    other_theta,
    overflow,
    stale_engine,
    swapped_weights,
)

from feather_edge.bundle import Bundle
from feather_edge.cli import main
from feather_edge.errors import BundleError
from feather_edge.pruning import selection
from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory, Exported

GRAPH, SWAPPED = "decoder_1", ("gate_proj", "up_proj")


@pytest.fixture
def exported(bundles: BundleFactory) -> Exported:
    return bundles(num_layers=4, recipe=ExportRecipe(opset="all"))


def failure_of(*arguments: str | Path) -> str:
    result = CliRunner().invoke(main, ["verify", *map(str, arguments)])
    assert result.exit_code == 1, result.output
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_a_sound_bundle_passes(exported: Exported) -> None:
    checkpoint = ("--checkpoint", str(exported.checkpoint))
    result = CliRunner().invoke(main, ["verify", str(exported.bundle.path), *checkpoint])
    assert result.exit_code == 0, result.output
    assert "with opset 23 against transformers, unpruned" in result.stdout


def test_a_swapped_weight(exported: Exported, tmp_path: Path) -> None:
    open_swap = swapped_weights(
        exported.bundle, tmp_path / "open", graph=GRAPH, words=SWAPPED, is_sealed=False
    )
    with pytest.raises(
        BundleError, match=r"decoder_1.onnx_data is not the file that was exported"
    ):
        Bundle.open(open_swap)

    folder = swapped_weights(exported.bundle, tmp_path / "sealed", graph=GRAPH, words=SWAPPED)
    found = failure_of(folder, "--checkpoint", exported.checkpoint, "--layers")
    assert (
        "Error: onnxruntime with opset 23 differs from transformers, unpruned: "
        "layers.1/mlp/residual/output of decoder_1 (prefill, 00.png) is the first with a cosine "
        "below 0.9999: 0."
    ) in found
    assert "its weights, or the positions and caches that it is given, are not the same" in found
    coarse = failure_of(folder, "--checkpoint", exported.checkpoint)
    assert " of decoder_1 (prefill, 00.png) is the first with a cosine below" in coarse


def test_one_overflow_in_fp16(bundles: BundleFactory, tmp_path: Path) -> None:
    recipe = ExportRecipe(opset="all", precision="fp16")
    exported = bundles(num_layers=4, recipe=recipe)
    folder = overflow(exported.bundle, tmp_path / "bundle", graph=GRAPH, word="down_proj")
    found = failure_of(folder, "--backend", "onnxruntime", "--layers")
    assert (
        "layers.1/mlp/residual/output of decoder_1 (prefill, 00.png) is the first with values "
        "that are not finite: "
    ) in found
    assert ", first inf at [0, " in found or ", first -inf at [0, " in found
    assert "with fp16 this is an overflow, export with --precision fp32" in found


def test_positions_off_by_one(exported: Exported, tmp_path: Path) -> None:
    folder = late_positions(exported.bundle, tmp_path / "bundle", graph=GRAPH)
    for against in (("--checkpoint", exported.checkpoint), ("--backend", "onnxruntime")):
        found = failure_of(folder, *against, "--layers")
        assert " of decoder_1 (prefill, 00.png) is the first with a cosine below 0.9999" in found
        assert "layers.1/mlp" in found or "present.1.key" in found
        assert "positions" in found


def test_positions_turned_into_other_angles(exported: Exported, tmp_path: Path) -> None:
    folder = other_theta(exported.bundle, tmp_path / "bundle")
    found = failure_of(folder, "--checkpoint", exported.checkpoint, "--layers")
    assert "cos of decoder_0 (prefill, 00.png) is the first with a cosine below 0.9999" in found
    assert "see rotary in the manifest" in found


@pytest.fixture
def finer(bundles: BundleFactory) -> Exported:
    """Eight by eight visual tokens: grids of different strides are different enough."""
    return bundles(num_layers=4, image_size=56, patch_size=7, recipe=ExportRecipe(opset="both"))


@pytest.mark.parametrize("stride", [2, 4])
def test_another_stride_than_the_recipes(finer: Exported, tmp_path: Path, stride: int) -> None:
    folder = other_stride(finer.bundle, tmp_path / "bundle", stride)
    found = failure_of(folder, "--backend", "onnxruntime", "--recipe", "feather")
    assert "Error: onnxruntime with opset 18 (00.png): stride is 3 in the recipe, but " in found
    assert f"with a grid of stride {stride}: " in found


def test_a_session_that_lays_another_grid(
    finer: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = selection.stride_grid
    monkeypatch.setattr(
        "feather_edge.pruning.criteria.feather.stride_grid",
        lambda height, width, stride: grid(height, width, stride + 1),
    )
    found = failure_of(finer.bundle.path, "--backend", "onnxruntime", "--no-receipt")
    assert "stride is 3 in the recipe, but the stage before layer 1 keeps " in found
    assert "with a grid of stride 4: " in found


def test_a_stale_engine_needs_no_gpu_to_be_found(exported: Exported, tmp_path: Path) -> None:
    bundle = bundle_with_engines(exported.bundle, tmp_path / "bundle")
    stale_engine(bundle, TARGET, GRAPH)
    found = failure_of(bundle.path)
    assert (
        f"Error: the engine of decoder_1 for target {TARGET} does not fit: graph_sha256 is "
        f"{'0' * 64} in its record, but "
    ) in found
    assert "rebuild it with: feather-edge build-engine" in found
