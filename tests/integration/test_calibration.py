"""Dynamic quantisation: sample prompts find the layers that it would hurt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from support.edits import edited_checkpoint
from support.shipped import CHECKPOINT

from feather_edge.export.calibration import Entering, best_rounding, calibrate
from feather_edge.export.pipeline import export
from feather_edge.export.precision import HIGHEST_ERROR, bundle_precision
from feather_edge.export.quantise import channel_codes, channel_scales
from feather_edge.recipes import ExportRecipe
from feather_edge.samples import shipped_samples

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory

    from feather_edge.bundle import Bundle

DYNAMIC = ExportRecipe(precision="int8-dynamic", stages=(1,))
FAR_OUT = "decoder/layers.1/mlp/down_proj"


def forms(bundle: Bundle) -> dict[str, str]:
    """Return of every dense layer how its weight is multiplied."""
    found = {}
    for spec in bundle.manifest.graphs:
        part = "vision_encoder" if spec.name == "vision_encoder" else "decoder"
        for node in onnx.load(bundle.path / spec.file, load_external_data=False).graph.node:
            if node.op_type in {"MatMulInteger", "MatMul"} and "proj" in node.name:
                found[f"{part}/{node.name}"] = node.op_type
    return found


def with_a_channel_far_out(source: Path, folder: Path) -> Path:
    """Let one channel of what enters a down_proj be huge, and let the layer ignore it."""

    def stretch(tensors: dict[str, Any]) -> None:
        up, down = (
            next(n for n in tensors if "lang" in n and f"layers.1.mlp.{part}.weight" in n)
            for part in ("up_proj", "down_proj")
        )
        tensors[up] = tensors[up].copy()
        tensors[down] = tensors[down].copy()
        tensors[up][3] *= 300
        tensors[down][:, 3] = 0

    return edited_checkpoint(source, folder, tensors=stretch)


def probing(source: Path, folder: Path) -> Bundle:
    return export(source, folder, DYNAMIC, precision=bundle_precision(DYNAMIC, None).probing())


def test_a_channel_far_out_is_smoothed(bundles: BundleFactory, tmp_path: Path) -> None:
    source = with_a_channel_far_out(bundles.checkpoint(num_layers=2), tmp_path / "c")
    found = calibrate(probing(source, tmp_path / "probing"), shipped_samples(1))[FAR_OUT]
    assert found.error < HIGHEST_ERROR
    assert found.smoothing is not None
    assert int(found.smoothing.argmax()) == 3
    bundle = export(source, tmp_path / "b", DYNAMIC)
    assert FAR_OUT not in bundle.manifest.kept_higher
    assert forms(bundle)[FAR_OUT] == "MatMulInteger"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c", "probing"]
    assert not list(bundle.path.rglob("*calibration*"))


def test_a_layer_that_stays_too_far_off_is_kept_higher(
    bundles: BundleFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = bundles.checkpoint(num_layers=2)
    errors = {
        path: found.error
        for path, found in calibrate(probing(source, tmp_path / "p"), shipped_samples(4)).items()
    }
    limit = sorted(errors.values())[-3]
    monkeypatch.setattr("feather_edge.export.precision.HIGHEST_ERROR", limit)
    bundle = export(source, tmp_path / "b", DYNAMIC)
    kept = bundle.manifest.kept_higher
    assert kept == pytest.approx({path: e for path, e in errors.items() if e > limit})
    assert len(kept) == 2
    assert {name for name, form in forms(bundle).items() if form == "MatMul"} == set(kept)


def test_every_layer_has_a_rounding_in_the_order_of_the_graphs(
    bundles: BundleFactory, tmp_path: Path
) -> None:
    bundle = probing(bundles.checkpoint(num_layers=2), tmp_path / "b")
    found = calibrate(bundle, shipped_samples(1))
    assert len(found) == 2 * 4 + 2 + 2 * 5  # the tower, the projector, the decoder
    assert [name for name in found if name.startswith("decoder")][:2] == [
        "decoder/layers.0/self_attn/qkv_proj", "decoder/layers.0/self_attn/o_proj",
    ]  # fmt: skip
    assert all(0 < each.error < HIGHEST_ERROR for each in found.values())
    again = calibrate(bundle, shipped_samples(1))
    assert [each.error for each in again.values()] == pytest.approx(
        [each.error for each in found.values()]
    )


def test_the_best_rounding_is_never_worse_than_none() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 24)).astype(np.float32)
    x[0] *= 100
    x[:, 3] *= 30
    weight = rng.standard_normal((24, 16)).astype(np.float32)
    runs = [Entering.of(x), Entering.of(x[::-1] * 2)]
    columns = weight.T
    scales = channel_scales(columns)
    rounded = (channel_codes(columns, scales) * scales[:, None]).T
    plain = max(
        float(np.sqrt(np.mean(np.sum((run.rounded(None, is_per_row=False) @ rounded
                                      - run.rows @ weight) ** 2, axis=1)
                              / np.sum((run.rows @ weight) ** 2, axis=1))))
        for run in runs
    )  # fmt: skip
    best = best_rounding(runs, weight)
    assert best.is_per_row
    assert best.smoothing is not None
    assert best.error < plain / 4


def test_one_part_may_be_dynamic(bundles: BundleFactory, tmp_path: Path) -> None:
    recipe = ExportRecipe(
        precision="int8", vision_precision="int8-dynamic", stages=(1,), head_precision="float"
    )
    bundle = export(bundles.checkpoint(num_layers=2), tmp_path / "b", recipe)
    by_part = {name.split("/")[0]: form for name, form in forms(bundle).items()}
    assert by_part == {"vision_encoder": "MatMulInteger", "decoder": "MatMul"}


def test_the_shipped_model_keeps_nothing_higher(bundles: BundleFactory) -> None:
    recipe = ExportRecipe(precision="int8-dynamic")
    assert bundles.export(CHECKPOINT, recipe=recipe).bundle.manifest.kept_higher == {}
