"""Dynamic quantisation: sample prompts find the layers that it would hurt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from support.edits import edited_checkpoint
from support.shipped import CHECKPOINT

from feather_edge.export.calibration import HIGHEST_ERROR, layers_to_keep
from feather_edge.export.pipeline import export
from feather_edge.export.precision import bundle_precision
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


def test_a_layer_that_would_be_hurt_is_kept_higher(bundles: BundleFactory, tmp_path: Path) -> None:
    source = bundles.checkpoint(num_layers=2)
    calm = export(source, tmp_path / "calm", DYNAMIC)
    assert calm.manifest.kept_higher == {}
    assert set(forms(calm).values()) == {"MatMulInteger"}

    bundle = export(with_a_channel_far_out(source, tmp_path / "c"), tmp_path / "b", DYNAMIC)
    kept = bundle.manifest.kept_higher
    assert kept[FAR_OUT] == max(kept.values()) > HIGHEST_ERROR
    assert {name for name, form in forms(bundle).items() if form == "MatMul"} == set(kept)
    assert len(kept) < len(forms(bundle)) / 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c", "calm"]
    assert not list(bundle.path.rglob("*calibration*"))


def test_errors_are_of_every_layer_in_the_order_of_the_graphs(
    bundles: BundleFactory, tmp_path: Path
) -> None:
    source = bundles.checkpoint(num_layers=2)
    probing = export(
        source, tmp_path / "b", DYNAMIC, precision=bundle_precision(DYNAMIC, None).probing()
    )
    errors = layers_to_keep(probing, shipped_samples(1), highest_error=0.0)
    assert len(errors) == 2 * 4 + 2 + 2 * 5  # the tower, the projector, the decoder
    assert [name for name in errors if name.startswith("decoder")][:2] == [
        "decoder/layers.0/self_attn/qkv_proj", "decoder/layers.0/self_attn/o_proj",
    ]  # fmt: skip
    assert all(0 < error < HIGHEST_ERROR for error in errors.values())
    again = layers_to_keep(probing, shipped_samples(1), highest_error=0.0)
    assert again == pytest.approx(errors)
    least = min(errors.values())
    assert len(layers_to_keep(probing, shipped_samples(1), highest_error=least)) == len(errors) - 1


def test_one_part_may_be_dynamic(bundles: BundleFactory, tmp_path: Path) -> None:
    recipe = ExportRecipe(
        precision="int8", vision_precision="int8-dynamic", stages=(1,), head_precision="float"
    )
    bundle = export(bundles.checkpoint(num_layers=2), tmp_path / "b", recipe)
    by_part = {name.split("/")[0]: form for name, form in forms(bundle).items()}
    assert by_part == {"vision_encoder": "MatMulInteger", "decoder": "MatMul"}


def test_the_shipped_model_keeps_what_multiplies_two_activations(bundles: BundleFactory) -> None:
    """What enters down_proj is a product, hence far from even; all else is."""
    recipe = ExportRecipe(precision="int8-dynamic")
    kept = bundles.export(CHECKPOINT, recipe=recipe).bundle.manifest.kept_higher
    assert kept
    assert all(name.endswith("/mlp/down_proj") for name in kept)
    assert np.all(np.array(list(kept.values())) < 0.2)
