"""Exported graphs keep their contract, and files hold each weight once."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import TensorProto

from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from collections.abc import Iterable

    from support.bundles import BundleFactory, Exported

    from feather_edge.graphs import GraphSpec

OPSETS = {24: 11, 23: 11, 18: 10}
STAGES = (1, 3)
MAX_NODES_PER_LAYER = 23
ALIGNMENT_BYTES = 4096


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def exported(request: pytest.FixtureRequest, bundles: BundleFactory) -> Exported:
    return bundles(num_layers=4, recipe=ExportRecipe(stages=STAGES, precision=request.param))


def load(exported: Exported, spec: GraphSpec, opset: int) -> onnx.ModelProto:
    (form,) = (form for form in spec.forms if form.opset == opset)
    return onnx.load(exported.bundle.path / form.file, load_external_data=False)


def dims(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)


@pytest.mark.parametrize("opset", OPSETS)
def test_every_graph_passes_the_full_check(exported: Exported, opset: int) -> None:
    graphs = exported.bundle.manifest.graphs
    assert [g.name for g in graphs] == ["vision_encoder", "decoder_0", "decoder_1", "decoder_2"]
    for spec in graphs:
        (form,) = (form for form in spec.forms if form.opset == opset)
        onnx.checker.check_model(exported.bundle.path / form.file, full_check=True)
        model = load(exported, spec, opset)
        assert model.ir_version == OPSETS[opset]
        assert {o.version for o in model.opset_import if o.domain == ""} == {opset}


@pytest.mark.parametrize("opset", OPSETS)
def test_graphs_are_what_their_contract_says(exported: Exported, opset: int) -> None:
    kinds = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
    kinds |= {"int64": TensorProto.INT64, "bool": TensorProto.BOOL}
    for spec in exported.bundle.manifest.graphs:
        graph = load(exported, spec, opset).graph
        (form,) = (form for form in spec.forms if form.opset == opset)
        contract = spec.of(form)
        for given, expected in (
            (graph.input, contract.inputs),
            (graph.output, contract.outputs),
        ):
            assert [(v.name, v.type.tensor_type.elem_type, dims(v)) for v in given] == [
                (t.name, kinds[t.dtype], t.shape) for t in expected
            ]


def test_contract_is_the_documented_one(exported: Exported) -> None:
    """Spelled out once more, so that a change of the contract is a decision."""
    dtype = {"fp32": "float32", "fp16": "float16"}[exported.bundle.manifest.recipe.precision]
    rows, past, total = ("batch", "sequence"), "past_sequence", "total_sequence"
    vision, first, middle, last = exported.bundle.manifest.graphs

    assert [(t.name, t.dtype, t.shape) for t in (*vision.inputs, *vision.outputs)] == [
        ("pixel_values", dtype, ("num_images", 3, 28, 28)),
        ("image_features", dtype, ("visual_tokens", 64)),
    ]
    assert [(t.name, t.dtype, t.shape) for t in first.inputs] == [
        ("inputs_embeds", dtype, (*rows, 64)),
        ("cos", dtype, (*rows, 8)),
        ("sin", dtype, (*rows, 8)),
        ("attention_mask", "bool", ("batch", 1, "sequence", total)),
        ("past_key_values.0.key", dtype, ("batch", 2, past, 16)),
        ("past_key_values.0.value", dtype, ("batch", 2, past, 16)),
        ("prune_priority", "float32", rows),
        ("score_cos", "float32", (*rows, 8)),
        ("score_sin", "float32", (*rows, 8)),
        ("score_mask", "float32", rows),
        ("num_kept", "int64", (1,)),
    ]
    assert [(t.name, t.dtype, t.shape) for t in first.outputs] == [
        ("present.0.key", dtype, ("batch", 2, total, 16)),
        ("present.0.value", dtype, ("batch", 2, total, 16)),
        ("kept_hidden_states", dtype, ("batch", "kept", 64)),
        ("kept_cos", dtype, ("batch", "kept", 8)),
        ("kept_sin", dtype, ("batch", "kept", 8)),
        ("kept_indices", "int64", ("batch", "kept")),
        ("scores", "float32", rows),
    ]
    assert middle.inputs[0].name == last.inputs[0].name == "hidden_states"
    assert [t.name for t in last.inputs[1:]] == [
        "cos",
        "sin",
        "attention_mask",
        "past_key_values.3.key",
        "past_key_values.3.value",
    ]
    assert [(t.name, t.dtype) for t in last.outputs] == [
        ("present.3.key", dtype),
        ("present.3.value", dtype),
        ("logits", "float32"),
    ]


def test_layers_are_few_nodes(exported: Exported) -> None:
    num_nodes: Counter[str] = Counter()
    for spec in exported.bundle.decoders:
        for node in load(exported, spec, 23).graph.node:
            if node.name.startswith("layers."):
                num_nodes[node.name.partition("/")[0]] += 1

    assert sorted(num_nodes) == [f"layers.{layer}" for layer in range(4)]
    assert max(num_nodes.values()) <= MAX_NODES_PER_LAYER


@pytest.mark.parametrize("opset", OPSETS)
def test_one_body_of_the_op_in_every_segment_that_prunes(exported: Exported, opset: int) -> None:
    bodies = [
        [(f.domain, f.name) for f in load(exported, spec, opset).functions]
        for spec in exported.bundle.manifest.graphs
    ]

    op = ("feather", "TopKUniformGather")
    assert bodies == [[], [op], [op], []]


@pytest.mark.parametrize("opset", OPSETS)
def test_every_weight_is_used_and_no_node_is_nameless(exported: Exported, opset: int) -> None:
    for spec in exported.bundle.manifest.graphs:
        graph = load(exported, spec, opset).graph
        used = {name for node in graph.node for name in node.input}
        assert {tensor.name for tensor in graph.initializer} <= used
        names = [node.name for node in graph.node]
        assert all(names)
        assert len(set(names)) == len(names)


def test_files_hold_the_weights_once(exported: Exported) -> None:
    """All forms together take what their tensors take, alignment aside."""
    onnx_folder = exported.bundle.path / "onnx"
    for spec in exported.bundle.manifest.graphs:
        external = {
            (entry["location"], int(entry["offset"]), int(entry["length"]))
            for opset in OPSETS
            for tensor in load(exported, spec, opset).graph.initializer
            if tensor.external_data
            for entry in [{e.key: e.value for e in tensor.external_data}]
        }
        assert {place for place, _, _ in external} == {f"{spec.name}.onnx_data"}
        weights = sum(length for _, _, length in external)
        size = (onnx_folder / f"{spec.name}.onnx_data").stat().st_size
        assert weights <= size <= weights + ALIGNMENT_BYTES * len(external)


def test_tied_head_is_the_embeddings_file(bundles: BundleFactory) -> None:
    tied, untied = (
        bundles(num_layers=4, recipe=ExportRecipe(stages=STAGES), tie_word_embeddings=is_tied)
        for is_tied in (True, False)
    )
    shape = tied.bundle.manifest.decoder
    head_bytes = shape.vocab_size * shape.hidden_size * 4
    for opset in OPSETS:
        model = load(tied, tied.bundle.decoders[-1], opset)
        (head,) = (t for t in model.graph.initializer if t.name == "lm_head.weight")
        place = {e.key: e.value for e in head.external_data}
        assert place["location"] == "embed_tokens.safetensors"
        assert int(place["length"]) == head_bytes

    sizes = [
        (e.bundle.path / e.bundle.decoders[-1].weights_file).stat().st_size for e in (tied, untied)
    ]
    assert sizes[1] - sizes[0] >= head_bytes
    embeddings = [e.bundle.embed_tokens_file.stat().st_size for e in (tied, untied)]
    assert embeddings[0] == embeddings[1]


def test_only_the_opset_that_is_asked_for(bundles: BundleFactory) -> None:
    for opset in ("18", "23", "24"):
        exported = bundles(num_layers=4, recipe=ExportRecipe(stages=STAGES, opset=opset))
        for spec in exported.bundle.manifest.graphs:
            assert [form.opset for form in spec.forms] == [int(opset)]
            assert (spec.main_form, spec.of(spec.main_form)) == (spec.forms[0], spec)
            assert bool(spec.caches_in_place) == (opset == "24" and "decoder" in spec.name)
            assert (exported.bundle.path / spec.file).is_file()
        assert len(list(exported.bundle.path.glob("onnx/*.onnx"))) == 4


def test_caches_in_place_are_updated_once_and_seen_through_one_slice(exported: Exported) -> None:
    for spec in exported.bundle.decoders:
        nodes = load(exported, spec, 24).graph.node
        counts = Counter(node.op_type for node in nodes)
        num_caches = len(spec.caches)
        assert counts["TensorScatter"] == counts["Slice"] - counts_of_score(nodes) == num_caches
        assert [node.name for node in nodes if node.op_type == "Shape"] == ["num_seen"]
        assert not any(n.op_type == "Concat" and "present" in n.name for n in nodes)


def counts_of_score(nodes: Iterable[onnx.NodeProto]) -> int:
    return sum(node.op_type == "Slice" and node.name.startswith("prune/") for node in nodes)
