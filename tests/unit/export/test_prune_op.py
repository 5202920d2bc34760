"""The custom op as a model of its own, against its numpy reference, index for index."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from feather_edge.export.builder import GraphBuilder
from feather_edge.export.dialects import DIALECTS
from feather_edge.export.precision import GraphPrecision
from feather_edge.export.prune_op import prune_function, top_k_uniform_gather
from feather_edge.graphs import GraphSpec, TensorSpec
from feather_edge.pruning import selection
from feather_edge.pruning.selection import ALWAYS, NEVER

if TYPE_CHECKING:
    from feather_edge.graphs import DType

WIDTH, HALF_HEAD = 6, 2
KEPT = ("kept_indices", "kept_hidden_states", "kept_cos", "kept_sin")
OPSETS = tuple(DIALECTS)


@cache
def op_model(dtype: DType, opset: int) -> onnx.ModelProto:
    """A graph of nothing but the op, written by the function that writes it into segments."""
    rows, kept = ("batch", "sequence"), ("batch", "kept")
    tensors: list[tuple[str, DType, tuple[int | str, ...]]] = [
        ("scores", "float32", rows),
        ("prune_priority", "float32", rows),
        ("num_kept", "int64", (1,)),
        ("hidden", dtype, (*rows, WIDTH)),
        ("cos", dtype, (*rows, HALF_HEAD)),
        ("sin", dtype, (*rows, HALF_HEAD)),
        ("kept_indices", "int64", kept),
        ("kept_hidden_states", dtype, (*kept, WIDTH)),
        ("kept_cos", dtype, (*kept, HALF_HEAD)),
        ("kept_sin", dtype, (*kept, HALF_HEAD)),
    ]
    specs = [TensorSpec(name=n, dtype=d, shape=s) for n, d, s in tensors]
    spec = GraphSpec(name="op", forms=(), inputs=tuple(specs[:6]), outputs=tuple(specs[6:]))
    g = GraphBuilder(spec, None, precision=GraphPrecision(dtype=dtype), dialect=DIALECTS[opset])
    return ir.to_proto(g.model(top_k_uniform_gather(g, g.inputs["scores"], g.inputs["hidden"])))


@cache
def ort_session(dtype: DType, opset: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        op_model(dtype, opset).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@st.composite
def requests(draw: st.DrawFn, dtype: DType) -> dict[str, np.ndarray]:
    """Rows with many ties: scores and priorities come from a handful of values."""
    batch, num_rows = draw(st.integers(1, 2)), draw(st.integers(1, 40))
    palette = draw(st.sampled_from([(0.5,), (0.0, 0.25, 0.5), tuple(np.linspace(0, 1, 64))]))
    priorities = draw(st.sampled_from([(0.0,), (0.0, ALWAYS), (0.0, ALWAYS, NEVER), (0.0, 0.25)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (batch, num_rows)
    return {
        "scores": rng.choice(palette, shape).astype(np.float32),
        "prune_priority": rng.choice(priorities, shape).astype(np.float32),
        "num_kept": np.array([draw(st.integers(1, num_rows))]),
        "hidden": rng.standard_normal((*shape, WIDTH)).astype(dtype),
        "cos": rng.standard_normal((*shape, HALF_HEAD)).astype(dtype),
        "sin": rng.standard_normal((*shape, HALF_HEAD)).astype(dtype),
    }


def expected_outputs(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    per_row = [
        selection.top_k_uniform_gather(
            inputs["scores"][b],
            inputs["prune_priority"][b],
            int(inputs["num_kept"][0]),
            *(inputs[name][b] for name in ("hidden", "cos", "sin")),
        )
        for b in range(len(inputs["scores"]))
    ]
    return [np.stack(part) for part in zip(*per_row, strict=True)]


def assert_equal(outputs: list[Any], inputs: dict[str, np.ndarray]) -> None:
    for output, expected in zip(outputs, expected_outputs(inputs), strict=True):
        assert output.dtype == expected.dtype
        np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@given(data=st.data())
@settings(max_examples=150)
def test_onnxruntime_keeps_what_numpy_keeps(dtype: DType, opset: int, data: Any) -> None:
    inputs = data.draw(requests(dtype))

    assert_equal(ort_session(dtype, opset).run(KEPT, inputs), inputs)


@pytest.mark.parametrize("opset", OPSETS)
@given(data=st.data())
@settings(max_examples=40)
def test_onnx_reference_keeps_what_numpy_keeps(opset: int, data: Any) -> None:
    inputs = data.draw(requests("float32"))

    assert_equal(ReferenceEvaluator(op_model("float32", opset)).run(KEPT, inputs), inputs)


@pytest.mark.parametrize("num_rows", [1, 2, 15, 16, 17, 255, 729, 1500])
def test_equal_scores_keep_the_first_rows_at_any_size(num_rows: int) -> None:
    """Runtimes switch top-k algorithms with the size; the rule for ties must not."""
    rng = np.random.default_rng(num_rows)
    for num_kept in sorted({1, 2, num_rows // 3, num_rows - 1, num_rows} - {0}):
        if num_kept > num_rows:
            continue
        for levels in (1, 2, 7):
            rows = (1, num_rows)
            inputs = {
                "scores": (rng.integers(0, levels, rows) / 8).astype(np.float32),
                "prune_priority": np.zeros(rows, np.float32),
                "num_kept": np.array([num_kept]),
                "hidden": np.ones((*rows, WIDTH), np.float32),
                "cos": np.ones((*rows, HALF_HEAD), np.float32),
                "sin": np.ones((*rows, HALF_HEAD), np.float32),
            }
            assert_equal(ort_session("float32", OPSETS[0]).run(KEPT, inputs), inputs)


@pytest.mark.parametrize("opset", OPSETS)
def test_node_and_body_are_what_plugins_look_for(opset: int) -> None:
    model = op_model("float16", opset)
    onnx.checker.check_model(model, full_check=True)
    (node,) = model.graph.node
    (function,) = model.functions

    assert (node.domain, node.op_type) == ("feather", "TopKUniformGather")
    assert {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} == {
        "plugin_namespace": b"feather",
        "plugin_version": b"1",
        "tensorrt_plugin_shape_input_indices": [2],
    }
    assert (function.domain, function.name) == ("feather", "TopKUniformGather")
    assert list(function.input) == ["scores", "priority", "num_kept", "hidden", "cos", "sin"]
    assert list(function.output) == ["kept", "kept_hidden", "kept_cos", "kept_sin"]
    assert {n.op_type for n in function.node} <= {
        "Add",
        "TopK",
        "Constant",
        "Unsqueeze",
        "GatherND",
    }


@pytest.mark.parametrize("opset", OPSETS)
def test_body_declares_the_opset_it_is_asked_for(opset: int) -> None:
    assert prune_function(opset=opset).opset_imports[""] == opset
