"""A tower that the builder does not know is traced, under the contract of those it knows."""

from __future__ import annotations

import builtins
import json
import shutil
from typing import TYPE_CHECKING, Any

import onnx
import pytest
import torch
from support.images import random_images
from support.reference import ReferenceVlm

from feather_edge import Session
from feather_edge.errors import CheckpointError, RecipeError, UnsupportedModelError
from feather_edge.export.pipeline import export
from feather_edge.fit import fit
from feather_edge.pruning import Pruning
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory

RECIPE = ExportRecipe(stages=(1, 2))


@pytest.mark.parametrize(("vision", "opset"), [("dinov2", "all"), ("vit", "18")])
def test_answers_are_those_of_transformers(
    bundles: BundleFactory, vision: str, opset: str
) -> None:
    recipe = ExportRecipe(stages=(1, 2), opset=opset)
    exported = bundles(num_layers=4, vision=vision, recipe=recipe)
    reference = ReferenceVlm(exported.checkpoint)
    images = random_images(2)
    inputs = reference.prepare(images, "what differs ?")
    with torch.no_grad():
        expected = reference.run(inputs, None, max_new_tokens=8)
    backend = OnnxRuntimeBackend(device="cpu", num_threads=1)
    with Session.open(exported.bundle, backend=backend) as session:
        result = session.generate(
            images, "what differs ?", pruning=Pruning(criterion="none"), max_new_tokens=8
        )
    assert list(result.token_ids) == expected.token_ids


def test_the_graph_is_of_the_contract(bundles: BundleFactory) -> None:
    bundle = bundles(num_layers=4, vision="dinov2", recipe=RECIPE).bundle
    for form in bundle.vision_encoder.forms:
        model = onnx.load(bundle.path / form.file, load_external_data=False)
        assert [(i.version) for i in model.opset_import if i.domain == ""] == [form.opset]
        assert [value.name for value in model.graph.input] == ["pixel_values"]
        assert [value.name for value in model.graph.output] == ["image_features"]
        assert {n.name.split("/")[0] for n in model.graph.node} <= {
            "traced_tower", "drop_class_token", "projector", "image_features",
        }  # fmt: skip
        assert onnx.checker.check_model(str(bundle.path / form.file)) is None


def altered(source: Path, copy: Path, **vision: Any) -> Path:
    shutil.copytree(source, copy)
    file = copy / "config.json"
    config = json.loads(file.read_text())
    config["vision_config"].update(vision)
    file.write_text(json.dumps(config))
    return copy


def test_a_tower_that_nobody_knows(bundles: BundleFactory, tmp_path: Path) -> None:
    source = bundles.checkpoint(num_layers=4, vision="dinov2")
    folder = altered(source, tmp_path / "copy", model_type="no-such-tower")

    with pytest.raises(UnsupportedModelError, match="'no-such-tower', which the installed"):
        export(folder, tmp_path / "bundle", RECIPE)


def test_a_tower_whose_weights_are_not_there(bundles: BundleFactory, tmp_path: Path) -> None:
    source = bundles.checkpoint(num_layers=4, vision="dinov2")
    folder = altered(source, tmp_path / "copy", num_hidden_layers=4)

    with pytest.raises(CheckpointError, match="layer.3"):
        export(folder, tmp_path / "bundle", RECIPE)
    assert not (tmp_path / "bundle").exists()


def test_an_estimate_traces_nothing(
    bundles: BundleFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trace(*_arguments: Any, **_options: Any) -> None:
        raise AssertionError("traced")

    exported = bundles(num_layers=4, vision="dinov2", recipe=RECIPE)
    monkeypatch.setattr("feather_edge.export.families._llava.traced_tower", trace)
    planned, real = (
        fit(source, recipe=RECIPE) for source in (exported.checkpoint, exported.bundle)
    )
    assert planned.graphs[1:] == real.graphs[1:]
    assert planned.graphs[0].weights_mib["float"] == pytest.approx(
        real.graphs[0].weights_mib["float"], abs=0.2
    )
    assert "PyTorch traces the vision tower" in planned.notes[0]
    assert real.notes == ()

    ignored = shutil.ignore_patterns("*.safetensors")
    folder = shutil.copytree(exported.checkpoint, tmp_path / "config", ignore=ignored)
    with pytest.raises(CheckpointError, match="'dinov2' has to be traced.*download"):
        fit(folder, recipe=RECIPE)


def test_without_torch_the_extra_is_named(
    bundles: BundleFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = bundles.checkpoint(num_layers=4, vision="dinov2")
    real_import = builtins.__import__

    def no_transformers(name: str, *args: Any, **kwargs: Any) -> Any:
        if name in {"transformers", "onnxscript"}:
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_transformers)
    with pytest.raises(UnsupportedModelError, match=r"pip install 'feather-edge\[torch\]'"):
        export(source, tmp_path / "bundle", RECIPE)


def test_its_weights_stay_float_and_nobody_is_told_otherwise(
    bundles: BundleFactory, tmp_path: Path
) -> None:
    source = bundles.checkpoint(num_layers=4, vision="dinov2")
    with pytest.raises(RecipeError, match="'dinov2' has to be traced.*--vision-precision fp32"):
        export(source, tmp_path / "bundle", ExportRecipe(precision="int8", stages=(1, 2)))
    recipe = ExportRecipe(precision="int8", vision_precision="fp32", stages=(1, 2))
    assert export(source, tmp_path / "bundle", recipe).decoders
