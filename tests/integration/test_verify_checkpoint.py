"""`verify --checkpoint`: families agree with transformers, and what cannot be compared is told."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support.checkpoints import tiny_llava
from support.families.anyres import tiny_llava_next, tiny_llava_onevision
from support.families.gemma import tiny_gemma3, tiny_paligemma
from support.families.idefics3 import tiny_idefics3
from support.families.internvl import tiny_internvl
from support.families.qwen_vl import tiny_qwen_vl

from feather_edge.errors import BackendError
from feather_edge.recipes import ExportRecipe
from feather_edge.verify import verify_chain, verify_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.bundles import BundleFactory
    from support.openvino import SetCapabilities

FAMILIES: dict[str, tuple[Callable[..., Path], dict[str, Any]]] = {
    "llava": (tiny_llava, {"num_layers": 2}),
    "llava_next": (tiny_llava_next, {}),
    "gemma3": (tiny_gemma3, {}),
    "paligemma": (tiny_paligemma, {}),
    "idefics3": (tiny_idefics3, {"kind": "idefics3"}),
}
HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None
if HAS_TORCHVISION:  # which the processors of these want, for videos
    FAMILIES |= {
        "internvl": (tiny_internvl, {}),
        "llava_onevision": (tiny_llava_onevision, {}),
        "qwen2_vl": (tiny_qwen_vl, {"model_type": "qwen2_vl", "layout": "saved"}),
        "qwen2_5_vl": (tiny_qwen_vl, {"model_type": "qwen2_5_vl", "layout": "saved"}),
    }
RECIPE = ExportRecipe(stages=(1,), opset="23")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_is_that_of_transformers(bundles: BundleFactory, family: str) -> None:
    make, options = FAMILIES[family]
    exported = bundles(make, recipe=RECIPE, **options)

    report = verify_checkpoint(exported.bundle, exported.checkpoint, layers=True)

    report.check()
    found = [(each.graph, each.tensor) for each in report.tensors]
    assert found[0] == ("vision_encoder", "image_features")
    assert found[1] == ("decoder_0", "inputs_embeds")
    layers = range(exported.bundle.schedule.num_layers)
    assert {f"layers.{layer}/mlp/residual/output" for layer in layers} <= {n for _, n in found}
    assert found[-1][1] == "logits"
    assert report.kept == ()
    for answer in report.answers:
        assert answer.num_tokens == answer.num_equal_tokens > 0
        assert answer.answer == answer.reference


@pytest.mark.skipif(HAS_TORCHVISION, reason="of a machine without torchvision")
def test_a_processor_that_needs_torchvision(bundles: BundleFactory) -> None:
    exported = bundles(tiny_internvl, recipe=RECIPE)
    with pytest.raises(BackendError, match=r"cannot open .*: pip install torchvision$"):
        verify_checkpoint(exported.bundle, exported.checkpoint)


def test_without_the_extra(bundles: BundleFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = bundles(num_layers=2, recipe=RECIPE)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BackendError, match=r"run: pip install 'feather-edge\[torch\]'$"):
        verify_checkpoint(exported.bundle, exported.checkpoint)


def test_weights_in_a_pickle_are_not_read(bundles: BundleFactory, tmp_path: Path) -> None:
    exported = bundles(num_layers=2, recipe=RECIPE)
    for file in exported.checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(BackendError, match="no file named model.safetensors"):
        verify_checkpoint(exported.bundle, tmp_path)


def test_another_checkpoints_prompt(bundles: BundleFactory) -> None:
    bundle = bundles(num_layers=2, recipe=RECIPE).bundle
    other = bundles.checkpoint(num_layers=2, image_size=42)
    report = verify_checkpoint(bundle, other)
    assert report.tensors == ()
    assert report.failure is not None
    assert " in transformers " in report.failure
    assert "number of visual tokens differ, export the bundle again" in report.failure
    assert not report.verdict.passed


@pytest.mark.parametrize("has_bf16", [False, True])
def test_all_that_there_is(
    bundles: BundleFactory, capabilities: SetCapabilities, *, has_bf16: bool
) -> None:
    capabilities("FP32", *(["BF16"] if has_bf16 else []))
    exported = bundles(num_layers=2, recipe=RECIPE)
    chain = verify_chain(exported.bundle, checkpoint=exported.checkpoint)
    assert chain.passed
    checkpoint, *others = chain.reports
    assert (checkpoint.tested, checkpoint.reference) == (
        "onnxruntime with opset 23", "transformers, unpruned",
    )  # fmt: skip
    assert {each.reference for each in others} == {"onnxruntime with opset 23"}
    skipped = [reason.partition(" needs ")[0] for reason in chain.skipped]
    # Rounding to bfloat16 is not held to what float32 is.
    lowest = {each.tested: each.lowest_cosine for each in others}
    if has_bf16:
        assert lowest == {"openvino": 0.9999, "openvino-bf16": 0.99}
        assert skipped == ["the graphs are in opset 23 alone"]
    else:
        assert lowest == {"openvino": 0.9999}
        assert skipped == ["the graphs are in opset 23 alone", "backend openvino-bf16"]


def test_bfloat16_is_skipped_for_graphs_of_float16(
    bundles: BundleFactory, capabilities: SetCapabilities
) -> None:
    capabilities("FP32", "BF16")
    exported = bundles(num_layers=2, recipe=ExportRecipe(opset="23", precision="fp16"))
    chain = verify_chain(exported.bundle)
    assert [each.tested for each in chain.reports] == ["openvino"]
    assert "is float16, and openvino-bf16 runs graphs of float32" in chain.skipped[1]
