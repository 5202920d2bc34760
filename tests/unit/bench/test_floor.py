"""What a request costs at least: operations, bytes, and the rates of a machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import TensorProto, helper

from feather_edge.bench import Summary, rates
from feather_edge.bench.floor import static_floor
from feather_edge.bench.graph_cost import graph_cost, weight_bytes
from feather_edge.bench.rates import MachineRates
from feather_edge.errors import BackendError
from feather_edge.evaluate.cost import prefill_flops, segment_flops
from feather_edge.inspection import describe
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime.backends import FakeBackend
from feather_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory

    from feather_edge.bundle import Bundle

PICTURE = np.zeros((20, 30, 3), np.uint8)
NUM_TEXT = 12


@pytest.fixture(scope="module")
def bundle(bundles: BundleFactory) -> Bundle:
    return bundles(num_layers=4, image_size=56, recipe=ExportRecipe(stages=(1, 3))).bundle


class KnownRates:
    """A machine that multiplies 1 GFLOP and copies 1 MB in a millisecond."""

    def matmul(self, rows: int, inner: int, columns: int, dtype: str) -> float | None:
        return 1e12

    def copy(self, num_bytes: int) -> float | None:
        return 1e9


class NoRates(KnownRates):
    def matmul(self, rows: int, inner: int, columns: int, dtype: str) -> float | None:
        return None

    def copy(self, num_bytes: int) -> float | None:
        return None


def counts(*num_visual_tokens: int) -> Summary:
    """Return a summary of which only the counts of tokens are looked at."""
    empty = dict.fromkeys(Summary.__struct_fields__, 0.0)
    return Summary(**empty | {"num_visual_tokens": num_visual_tokens, "num_text_tokens": NUM_TEXT})


# -- operations -------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [18, 23])
def test_operations_of_a_segment_are_those_of_the_formula(
    bundles: BundleFactory, opset: int
) -> None:
    """The graph also has its logits, and nothing else that the formula leaves out."""
    recipe = ExportRecipe(prune="none", opset="all")
    bundle = bundles(num_layers=4, image_size=56, recipe=recipe).bundle
    (spec,) = bundle.decoders
    (form,) = (form for form in spec.forms if form.opset == opset)
    rows = 64 + NUM_TEXT
    sizes = {"batch": 1, "sequence": rows, "past_sequence": 0, "total_sequence": rows}

    cost = graph_cost(bundle.path / form.file, sizes)

    shape = bundle.manifest.decoder
    logits = 2 * shape.hidden_size * shape.vocab_size
    assert cost.flops == prefill_flops(bundle, [64], NUM_TEXT) + logits


def test_operations_of_a_vision_encoder_by_hand(bundles: BundleFactory) -> None:
    exported = bundles(num_layers=4, image_size=56, recipe=ExportRecipe(stages=(1, 3)))
    config = json.loads((exported.checkpoint / "config.json").read_text())
    vision, width = config["vision_config"], config["text_config"]["hidden_size"]
    d, mlp, patches = vision["hidden_size"], vision["intermediate_size"], 64
    rows = patches + 1  # CLIP's class token
    num_layers = vision["num_hidden_layers"] - 1  # features are those before the last
    macs = patches * 3 * vision["patch_size"] ** 2 * d
    macs += num_layers * (4 * rows * d * d + 2 * rows * rows * d + 2 * rows * d * mlp)
    macs += patches * (d * width + width * width)
    file = exported.bundle.path / exported.bundle.vision_encoder.file

    assert graph_cost(file, {"num_images": 1}).flops == 2 * macs
    assert graph_cost(file, {"num_images": 2}).flops == 4 * macs


@pytest.mark.parametrize(
    ("operator", "right", "size"),
    [
        ("MatMul", (16, 5), (2 * 3 * 4, 16, 5)),
        ("MatMulInteger", (16, 5), (2 * 3 * 4, 16, 5)),
        ("MatMul", (2, 3, 16, 5), None),
    ],
)
def test_products_of_matrices(
    tmp_path: Path, operator: str, right: tuple[int, ...], size: tuple[int, int, int] | None
) -> None:
    kind = TensorProto.INT8 if operator == "MatMulInteger" else TensorProto.FLOAT
    out = TensorProto.INT32 if operator == "MatMulInteger" else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(operator, ["a", "b"], ["c"])], "one",
        [helper.make_tensor_value_info("a", kind, ["batch", 3, 4, 16]),
         helper.make_tensor_value_info("b", kind, right)],
        [helper.make_tensor_value_info("c", out, ["batch", 3, 4, 5])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    (tmp_path / "one.onnx").write_bytes(model.SerializeToString())

    cost = graph_cost(tmp_path / "one.onnx", {"batch": 2})

    assert cost.flops == 2 * 2 * 3 * 4 * 16 * 5
    assert cost.matmul == size


def test_shapes_that_nobody_knows(bundle: Bundle) -> None:
    assert graph_cost(bundle.path / bundle.decoders[0].file, {}) is None


def test_bytes_of_weights_are_those_that_inspect_tells(bundle: Bundle) -> None:
    found = [weight_bytes(bundle.path / spec.file) for spec in bundle.manifest.graphs]

    # A form may have a constant more than another.
    told = [graph.weight_bytes for graph in describe(bundle).graphs]
    assert found == pytest.approx(told, rel=1e-3)


# -- roofs ------------------------------------------------------------------------------------


def test_the_floor(bundle: Bundle) -> None:
    unpruned, pruned = counts(64, 64, 64), counts(64, 25, 2)

    floor = static_floor(bundle, PICTURE, unpruned, pruned, KnownRates())

    shape = bundle.manifest.decoder
    per_layer = 2 * shape.num_key_value_heads * shape.head_dim * 4
    assert floor.kv_bytes_per_token == 4 * per_layer
    assert floor.unpruned.kv_bytes == (64 + NUM_TEXT) * 4 * per_layer
    assert floor.pruned.kv_bytes == (76 + 2 * (25 + NUM_TEXT) + 2 + NUM_TEXT) * per_layer
    flops = segment_flops(bundle, (64, 25, 2), NUM_TEXT)
    assert [segment.flops for segment in floor.pruned.segments] == flops
    assert [segment.num_rows for segment in floor.pruned.segments] == [76, 37, 14]
    assert floor.pruned.prefill_flops == sum(flops)
    assert floor.copy_gbytes_per_s == 1.0
    for graph in (floor.pruned.vision, *floor.pruned.segments):
        assert graph.roof_ms == pytest.approx(max(graph.flops / 1e9, graph.weight_bytes / 1e6))
    assert floor.pruned.ttft_roof_ms == pytest.approx(
        floor.pruned.vision.roof_ms + sum(s.roof_ms for s in floor.pruned.segments)
    )
    decoder_bytes = sum(segment.weight_bytes for segment in floor.pruned.segments)
    assert floor.pruned.tpot_roof_ms * 1e6 == pytest.approx(decoder_bytes + floor.pruned.kv_bytes)
    assert floor.weight_bytes == decoder_bytes + floor.pruned.vision.weight_bytes


def test_no_roof_where_nothing_can_be_measured(bundle: Bundle) -> None:
    floor = static_floor(bundle, PICTURE, counts(64, 64, 64), None, NoRates())

    assert floor.pruned is None
    assert floor.copy_gbytes_per_s is None
    assert floor.unpruned.prefill_flops > 0
    assert floor.unpruned.ttft_roof_ms is floor.unpruned.tpot_roof_ms is None


# -- rates ------------------------------------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MIN_TIME_S", 0.0)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rates_of_this_machine(dtype: str) -> None:
    machine = MachineRates(OnnxRuntimeBackend(device="cpu", num_threads=1))

    assert 1e6 < machine.matmul(32, 64, 48, dtype) < 1e15
    assert 1e6 < machine.copy(2**20) < 1e13


@pytest.mark.usefixtures("hasty")
def test_a_size_is_measured_once(tmp_path: Path) -> None:
    class Counting(FakeBackend):
        num_opened = 0

        def open(self, file: Path, spec: object) -> object:
            self.num_opened += 1
            assert file.is_file()
            return super().open(file, spec)

    backend = Counting(token_ids=[1])
    machine = MachineRates(backend)
    for rows in (8, 8, 9):
        machine.matmul(rows, 4, 4, "float32")

    assert backend.num_opened == 2


def test_a_type_that_a_backend_does_not_multiply() -> None:
    class Picky(FakeBackend):
        def open(self, file: Path, spec: object) -> object:
            raise BackendError("no MatMul of float16")

    assert MachineRates(Picky(token_ids=[1])).matmul(8, 4, 4, "float16") is None


def test_engines_have_no_rates() -> None:
    backend = FakeBackend(token_ids=[1])
    backend.name = "tensorrt"
    machine = MachineRates(backend)

    assert machine.matmul(8, 4, 4, "float32") is None
    assert machine.copy(100) is None


def test_the_host_s_copies_say_nothing_of_a_gpu() -> None:
    backend = FakeBackend(token_ids=[1])
    backend.device = "cuda"

    assert MachineRates(backend).copy(100) is None
