"""Whole bundles in every precision: what runs, how close it stays, what is stored."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from support.bundles import ChainRunner
from support.edits import edited_checkpoint
from support.packed import declare, pack_linears
from support.shipped import CHECKPOINT

from feather_edge import Session
from feather_edge.checkpoint.reader import read_tensors
from feather_edge.errors import BackendError, RecipeError
from feather_edge.export.pipeline import export
from feather_edge.recipes import ExportRecipe
from feather_edge.samples import shipped_samples

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory

    from feather_edge.bundle import Bundle

NUM_LAYERS = 4
LINEARS_PER_LAYER = 5  # q, k and v are one
LOWEST_COSINE = {"int8": 0.999, "int4": 0.97, "int8-dynamic": 0.995}


def recipe(**precision: Any) -> ExportRecipe:
    return ExportRecipe(stages=(1, 2), **precision)


def logits(bundle: Bundle) -> np.ndarray:
    """Return [2, V]: after a prompt of an image and some text, and after one token more."""
    image = bundle.manifest.image
    rng = np.random.default_rng(0)
    prompt_ids = np.concatenate([rng.integers(5, 90, 6), np.full(16, image.token_id), [7, 8, 9]])
    pixels = rng.standard_normal((1, 3, 28, 28)).astype(np.float32)
    chain = ChainRunner(bundle)
    first, _ = chain.prefill(prompt_ids, pixels)
    return np.stack([first, chain.step(11)])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))


def operators(bundle: Bundle, graph: str, folder: Path) -> Counter[str]:
    """Return the operators that ONNX Runtime makes of a graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    (spec,) = (spec for spec in bundle.manifest.graphs if spec.name == graph)
    onnxruntime.InferenceSession(
        bundle.path / spec.file, options, providers=["CPUExecutionProvider"]
    )
    model = onnx.load(folder / "optimised.onnx", load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("precision", list(LOWEST_COSINE))
@pytest.mark.parametrize("is_tied", [False, True])
def test_logits_stay_close(bundles: BundleFactory, precision: Any, is_tied: bool) -> None:
    options = {"num_layers": NUM_LAYERS, "tie_word_embeddings": is_tied}
    expected = logits(bundles(recipe=recipe(), **options).bundle)
    found = logits(bundles(recipe=recipe(precision=precision), **options).bundle)
    assert cosine(found, expected) > LOWEST_COSINE[precision]
    assert not np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("precision", "fused"),
    [
        ({"precision": "int4"}, "MatMulNBits"),
        ({"precision": "int8", "block_size": 128}, "MatMulNBits"),
        ({"precision": "int8-dynamic"}, "DynamicQuantizeMatMul"),
    ],
)
def test_every_dense_layer_is_fused(
    bundles: BundleFactory, tmp_path: Path, precision: dict[str, Any], fused: str
) -> None:
    bundle = bundles(num_layers=NUM_LAYERS, recipe=recipe(**precision)).bundle
    found = operators(bundle, "decoder_2", tmp_path)
    dynamic = {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
    names = dynamic if fused in dynamic else {fused}
    num_linears = sum(found[name] for name in names)
    is_head_apart = fused in dynamic
    assert num_linears == 2 * LINEARS_PER_LAYER + (not is_head_apart)
    assert found["MatMulNBits"] >= 1  # the head
    assert not found["DequantizeLinear"]
    assert not found["MatMul"]
    vision = operators(bundle, "vision_encoder", tmp_path)
    assert not vision["DequantizeLinear"]
    assert not vision["MatMul"] + vision["Gemm"]


def test_parts_have_precisions_of_their_own(bundles: BundleFactory, tmp_path: Path) -> None:
    mixed = recipe(precision="int4", vision_precision="fp16", head_precision="float")
    bundle = bundles(num_layers=NUM_LAYERS, recipe=mixed).bundle
    assert [t.dtype for t in bundle.vision_encoder.inputs] == ["float16"]
    assert bundle.decoders[0].inputs[0].dtype == "float32"
    head = operators(bundle, "decoder_2", tmp_path)
    assert head["Gemm"] == 1
    assert not operators(bundle, "vision_encoder", tmp_path)["MatMulNBits"]
    float_logits = logits(bundles(num_layers=NUM_LAYERS, recipe=recipe()).bundle)
    assert cosine(logits(bundle), float_logits) > LOWEST_COSINE["int4"]


def test_the_manifest_says_what_was_chosen(bundles: BundleFactory) -> None:
    bundle = bundles(num_layers=NUM_LAYERS, recipe=recipe(precision="int4")).bundle
    assert bundle.manifest.recipe == recipe(
        precision="int4", vision_precision="int8", head_precision="int8", activations="fp32"
    )


@pytest.mark.parametrize(
    ("precision", "opsets"),
    [("fp16", {18, 23, 24}), ("int8", {23, 24}), ("bf16", {23, 24}), ("int8-dynamic", {23})],
)
def test_every_form_is_written_that_can_hold_the_precision(
    bundles: BundleFactory, precision: Any, opsets: set[int]
) -> None:
    bundle = bundles(num_layers=NUM_LAYERS, recipe=recipe(precision=precision)).bundle
    for graph in bundle.decoders:
        assert {form.opset for form in graph.forms} == opsets


def test_embeddings_keep_the_checkpoints_type_where_it_is_narrower(
    bundles: BundleFactory, tmp_path: Path
) -> None:
    import torch

    options = {"num_layers": NUM_LAYERS, "dtype": torch.bfloat16, "tie_word_embeddings": True}
    shared = bundles(recipe=recipe(precision="int8", head_precision="float"), **options).bundle
    apart = bundles(recipe=recipe(precision="int8"), **options).bundle
    types = [
        next(iter(read_tensors(bundle.embed_tokens_file).values())).dtype.name
        for bundle in (shared, apart)
    ]
    assert types == ["float32", "bfloat16"]
    with Session.open(apart) as session:
        image = np.zeros((28, 28, 3), np.uint8)
        assert session.generate(image, "Where is the circle?", max_new_tokens=3).token_ids


def test_the_shipped_model_still_answers(bundles: BundleFactory) -> None:
    sample = shipped_samples()[0]
    answers = {}
    for precision in ("fp32", "int8", "int4", "int8-dynamic"):
        exported = bundles.export(CHECKPOINT, recipe=ExportRecipe(precision=precision))  # type: ignore[arg-type]
        with Session.open(exported.bundle) as session:
            answers[precision] = session.generate(sample.image, sample.prompt).text
    assert len(set(answers.values())) == 1, answers


@pytest.mark.parametrize(
    "precision", [{"precision": "bf16"}, {"precision": "int8", "activations": "bf16"}]
)
def test_bfloat16_is_for_tensorrt(bundles: BundleFactory, precision: dict[str, Any]) -> None:
    bundle = bundles(num_layers=NUM_LAYERS, recipe=recipe(**precision)).bundle
    for spec in bundle.manifest.graphs:
        onnx.checker.check_model(bundle.path / spec.file, full_check=True)
    with pytest.raises(BackendError, match="is bf16, which onnxruntime has too few operators for"):
        Session.open(bundle)


# -- checkpoints that are int4 already ---------------------------------------------------------


@pytest.mark.parametrize(("method", "is_symmetric"), [("awq", False), ("gptq", True)])
def test_a_quantised_checkpoint_is_taken_over(
    bundles: BundleFactory, tmp_path: Path, method: Any, is_symmetric: bool
) -> None:
    source = bundles.checkpoint(num_layers=NUM_LAYERS)
    stand_for: dict[str, np.ndarray] = {}
    packed = edited_checkpoint(
        source,
        tmp_path / "packed",
        tensors=lambda t: stand_for.update(pack_linears(t, method, is_symmetric=is_symmetric)),
        config=lambda c: c.update(quantization_config=declare(method)),
    )
    plain = edited_checkpoint(source, tmp_path / "plain", tensors=lambda t: t.update(stand_for))
    assert len(stand_for) == 7 * NUM_LAYERS
    wanted = recipe(precision="int4", vision_precision="fp32", head_precision="float")
    bundle = export(packed, tmp_path / "bundle", wanted)
    expected = logits(export(plain, tmp_path / "float", recipe()))

    assert cosine(logits(bundle), expected) > 0.9995
    assert bundle.manifest.taken_over is not None
    assert bundle.manifest.taken_over.method == method
    document = json.loads((bundle.path / "manifest.json").read_text())
    assert document["taken_over"]["group_size"] == 32


def test_a_quantised_checkpoint_is_not_made_float(bundles: BundleFactory, tmp_path: Path) -> None:
    packed = edited_checkpoint(
        bundles.checkpoint(num_layers=NUM_LAYERS),
        tmp_path / "packed",
        tensors=lambda t: pack_linears(t, "awq", is_symmetric=True),
        config=lambda c: c.update(quantization_config=declare("awq")),
    )
    with pytest.raises(RecipeError, match=r"holds int4 weights \(awq\), .* --precision int4"):
        export(packed, tmp_path / "bundle", recipe(precision="fp16"))
    assert not (tmp_path / "bundle").exists()
