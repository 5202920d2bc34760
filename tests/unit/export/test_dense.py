"""Dense layers in each form: what is computed, and what ONNX Runtime makes of the nodes."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from safetensors.numpy import save_file
from support.packed import declare, dequantised, packed_tensors, quantise

from feather_edge.checkpoint.reader import Checkpoint
from feather_edge.errors import CheckpointError, UnsupportedModelError
from feather_edge.export.builder import GraphBuilder, save
from feather_edge.export.calibration import Entering
from feather_edge.export.dense import dense
from feather_edge.export.dialects import DIALECTS
from feather_edge.export.precision import GraphPrecision, Rounding
from feather_edge.export.quantise import (
    block_codes,
    block_scales,
    channel_codes,
    channel_scales,
)
from feather_edge.export.weights import Weights
from feather_edge.graphs import GraphSpec, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

IN, WIDTHS = 96, (64, 32)
MODULES = ("layer.q", "layer.k")
RNG = np.random.default_rng(3)
FLOAT_WEIGHTS = [RNG.standard_normal((n, IN)).astype(np.float32) for n in WIDTHS]
X = RNG.standard_normal((2, 5, IN)).astype(np.float32)


def checkpoint(
    folder: Path, tensors: dict[str, np.ndarray], quantisation: dict[str, Any] | None = None
) -> Weights:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantisation}))
    return Weights(Checkpoint.open(folder), [("layer.", "layer.")])


def float_weights(folder: Path) -> Weights:
    tensors = zip(MODULES, FLOAT_WEIGHTS, strict=True)
    return checkpoint(folder, {f"{module}.weight": weight for module, weight in tensors})


def write(weights: Weights, file: Path, form: Any, **precision: Any) -> Path:
    """Write a graph of one dense layer whose two modules lie side by side."""
    precision = {"dtype": "float32", "linears": form} | precision
    dtype = precision["dtype"]
    spec = GraphSpec(
        name="dense",
        forms=(),
        inputs=(TensorSpec(name="x", dtype=dtype, shape=("batch", "rows", IN)),),
        outputs=(TensorSpec(name="y", dtype=dtype, shape=("batch", "rows", sum(WIDTHS))),),
    )
    g = GraphBuilder(spec, weights, precision=GraphPrecision(**precision), dialect=DIALECTS[23])
    with g.scope("attn"):
        y = dense(g, g.inputs["x"], *MODULES, in_size=IN, out_sizes=WIDTHS, form=form, name="qkv")
    save({file: g.model({"y": y})}, file.with_suffix(".data"), on_tensor=lambda _: None)
    onnx.checker.check_model(file, full_check=True)
    return file


def run(
    file: Path, x: np.ndarray = X, *, is_optimised: bool = True
) -> tuple[np.ndarray, set[str]]:
    """Return y of x, and the operators of the graph that ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    optimised = file.with_suffix(".optimised.onnx")
    options.optimized_model_filepath = str(optimised)
    if not is_optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x.astype(np.dtype(session.get_inputs()[0].type[7:-1]
                                                     .replace("float16", "f2")
                                                     .replace("float", "f4")))})  # fmt: skip
    nodes = onnx.load(optimised, load_external_data=False).graph.node
    return y.astype(np.float32), {node.op_type for node in nodes}


def relative_error(y: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(y - expected) / np.linalg.norm(expected))


def joined(weights: list[np.ndarray]) -> np.ndarray:
    return X @ np.concatenate(weights).T


def test_float_is_one_product(tmp_path: Path) -> None:
    y, operators = run(write(float_weights(tmp_path / "c"), tmp_path / "g.onnx", "float"))
    np.testing.assert_allclose(y, joined(FLOAT_WEIGHTS), rtol=1e-5, atol=1e-5)
    assert operators == {"MatMul"}


@pytest.mark.parametrize(("form", "bits"), [("int4", 4), ("int8", 8)])
@pytest.mark.parametrize("block_size", [16, 64])  # 96 inputs: blocks of 64 become 32, whole ones
@pytest.mark.parametrize("clipping", ["none", "mse"])
def test_blocks_are_what_numpy_says(
    tmp_path: Path, form: str, bits: int, block_size: int, clipping: Any
) -> None:
    weights = float_weights(tmp_path / "c")
    file = write(weights, tmp_path / "g.onnx", form, block_size=block_size, clipping=clipping)
    whole = math.gcd(IN, block_size)
    stands_for = []
    for rows in FLOAT_WEIGHTS:
        scales = block_scales(
            rows, bits=bits, block_size=whole, clipping=clipping, dtype=np.dtype("f4")
        )
        codes = block_codes(rows, scales, bits=bits, block_size=whole)
        stands_for.append(codes * np.repeat(scales, whole, axis=1))
    y, operators = run(file, is_optimised=False)
    assert operators == {"DequantizeLinear", "MatMul"}
    np.testing.assert_allclose(y, joined(stands_for), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["int4", "int8"])
@pytest.mark.parametrize("block_size", [32, 128])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_onnx_runtime_fuses_blocks(tmp_path: Path, form: str, block_size: int, dtype: str) -> None:
    """Otherwise it would multiply by a dequantised copy: slower than float, and as large."""
    file = write(
        float_weights(tmp_path / "c"),
        tmp_path / "g.onnx",
        form,
        block_size=block_size,
        dtype=dtype,
    )
    y, operators = run(file)
    assert operators - {"Cast"} == {"MatMulNBits"}
    assert relative_error(y, joined(FLOAT_WEIGHTS)) < (0.15 if form == "int4" else 0.02)


def test_dynamic_quantisation_is_fused_and_close(tmp_path: Path) -> None:
    y, operators = run(write(float_weights(tmp_path / "c"), tmp_path / "g.onnx", "int8-dynamic"))
    assert operators == {"DynamicQuantizeMatMul"}
    assert relative_error(y, joined(FLOAT_WEIGHTS)) < 0.02


@pytest.mark.parametrize("is_per_row", [False, True])
@pytest.mark.parametrize("is_smooth", [False, True])
def test_what_enters_is_rounded_as_a_calibration_says(
    tmp_path: Path, is_smooth: bool, is_per_row: bool
) -> None:
    """Inputs have one channel and one row far out; the rounding that is told helps, exactly."""
    x = X.copy()
    x[..., 5] *= 200
    x[:, 1] *= 50
    smoothing = np.ones(IN, np.float32)
    smoothing[5] = 200
    rounding = Rounding(
        error=0.0, smoothing=smoothing if is_smooth else None, is_per_row=is_per_row
    )
    file = write(
        float_weights(tmp_path / "c"),
        tmp_path / "g.onnx",
        "int8-dynamic",
        roundings={"attn/qkv": rounding},
    )
    y, operators = run(file, x)
    assert "DynamicQuantizeMatMul" in operators
    weight = np.concatenate(FLOAT_WEIGHTS)
    entering = Entering.of(x).rounded(rounding.smoothing, is_per_row=is_per_row)
    columns = weight if not is_smooth else weight * smoothing
    scales = channel_scales(columns)
    expected = entering @ (channel_codes(columns, scales) * scales[:, None]).T
    assert relative_error(y.reshape(expected.shape), expected) < 0.002
    error = relative_error(y[:, 2:], (x @ weight.T)[:, 2:])  # of rows that are not far out
    assert error < 0.02 if is_smooth and is_per_row else error > 0.02


@pytest.mark.parametrize(("in_size", "operator"), [(40, "MatMul"), (48, "DequantizeLinear")])
def test_inputs_that_make_no_whole_block_stay_float(
    tmp_path: Path, in_size: int, operator: str
) -> None:
    """As those of Qwen2.5-VL's patches, 1176, of which TensorRT makes no blocks of 16."""
    matrix = RNG.standard_normal((8, in_size)).astype(np.float32)
    weights = checkpoint(tmp_path / "c", {"layer.q.weight": matrix})
    spec = GraphSpec(
        name="dense",
        forms=(),
        inputs=(TensorSpec(name="x", dtype="float32", shape=("rows", in_size)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("rows", 8)),),
    )
    precision = GraphPrecision(dtype="float32", linears="int8")
    g = GraphBuilder(spec, weights, precision=precision, dialect=DIALECTS[23])
    y = dense(g, g.inputs["x"], "layer.q", in_size=in_size, out_sizes=(8,), form="int8", name="q")
    operators = {node.op_type for node in g.model({"y": y}).graph}
    assert operators == {operator, "MatMul"}


def test_a_layer_that_is_kept_higher_has_blocks() -> None:
    roundings = {"a/down": Rounding(error=0.2), "a/up": Rounding(error=0.01)}
    precision = GraphPrecision(dtype="float32", linears="int8-dynamic", roundings=roundings)
    assert precision.form_of("a/down") == "int8"
    assert precision.form_of("a/up") == "int8-dynamic"
    assert precision.form_of("a/unseen") == "int8-dynamic"


def test_weights_are_stored_as_promised(tmp_path: Path) -> None:
    file = write(float_weights(tmp_path / "c"), tmp_path / "g.onnx", "int4")
    tensors = ir.load(file).graph.initializers
    stored = {name: value.const_value for name, value in tensors.items()}
    assert {name: (t.dtype.name, tuple(t.shape)) for name, t in stored.items() if t} == {
        "attn/qkv.scales": ("FLOAT", (3, 96)),
        "attn/qkv.int4": ("INT4", (96, 96)),
    }
    assert stored["attn/qkv.int4"].nbytes == 96 * 96 // 2


# -- weights that are int4 already -------------------------------------------------------------


def packed_weights(
    folder: Path, method: Any, *, is_symmetric: bool
) -> tuple[Weights, list[np.ndarray], list[Any]]:
    tensors, stand_for, quantised = {}, [], []
    for module, weight in zip(MODULES, FLOAT_WEIGHTS, strict=True):
        layer = quantise(weight, is_symmetric=is_symmetric)
        quantised.append(layer)
        stand_for.append(dequantised(*layer))
        parts = packed_tensors(method, *layer)
        tensors |= {f"{module}.{part}": values for part, values in parts.items()}
    return checkpoint(folder, tensors, declare(method)), stand_for, quantised


@pytest.mark.parametrize("method", ["awq", "gptq", "gptq_v2"])
@pytest.mark.parametrize("is_symmetric", [True, False])
def test_packed_weights_are_taken_over(tmp_path: Path, method: Any, is_symmetric: bool) -> None:
    weights, stand_for, quantised = packed_weights(
        tmp_path / "c", method, is_symmetric=is_symmetric
    )
    file = write(weights, tmp_path / "g.onnx", "float")

    tensors = ir.load(file).graph.initializers
    codes = np.concatenate([layer[0] - 8 for layer in quantised], axis=1)
    np.testing.assert_array_equal(tensors["attn/qkv.int4"].const_value.numpy(), codes)
    scales = np.concatenate([layer[2] for layer in quantised], axis=1)
    np.testing.assert_array_equal(tensors["attn/qkv.scales"].const_value.numpy(), scales)
    assert ("attn/qkv.offsets" in tensors) != is_symmetric

    y, _ = run(file, is_optimised=False)
    np.testing.assert_allclose(y, joined(stand_for), rtol=1e-4, atol=1e-4)
    y, operators = run(file)
    assert "MatMulNBits" in operators
    assert "DequantizeLinear" not in operators
    assert relative_error(y, joined(stand_for)) < 0.02
    weights.check_all_used("layer.")


def test_one_group_for_all_inputs(tmp_path: Path) -> None:
    layer = quantise(FLOAT_WEIGHTS[0][:, :32], is_symmetric=True)
    tensors = {f"layer.q.{n}": v for n, v in packed_tensors("gptq", *layer).items()}
    weights = checkpoint(tmp_path / "c", tensors, declare("gptq") | {"group_size": -1})
    packed = weights.packed_linear("layer.q", in_size=32, out_size=64)
    np.testing.assert_array_equal(packed.codes(), layer[0] - 8)
    assert packed.group_size == 32


def test_reordered_groups_are_refused(tmp_path: Path) -> None:
    layer = quantise(FLOAT_WEIGHTS[0], is_symmetric=True)
    tensors = {f"layer.q.{n}": v for n, v in packed_tensors("gptq", *layer).items()}
    tensors["layer.q.g_idx"] = tensors["layer.q.g_idx"][::-1].copy()
    weights = checkpoint(tmp_path / "c", tensors, declare("gptq"))
    with pytest.raises(UnsupportedModelError, match="q.g_idx reorders .* desc_act off"):
        weights.packed_linear("layer.q", in_size=IN, out_size=64)


def test_sizes_that_are_not_whole_groups_are_refused(tmp_path: Path) -> None:
    layer = quantise(FLOAT_WEIGHTS[0], is_symmetric=True)
    tensors = {f"layer.q.{n}": v for n, v in packed_tensors("awq", *layer).items()}
    weights = checkpoint(tmp_path / "c", tensors, declare("awq"))
    with pytest.raises(CheckpointError, match="words of 8 and groups of 32"):
        weights.packed_linear("layer.q", in_size=80, out_size=64)
    with pytest.raises(CheckpointError, match="qweight' has shape"):
        weights.packed_linear("layer.q", in_size=64, out_size=64)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bits": 8}, "has bits 8; weights are taken over with bits 4"),
        ({"group_size": 8}, "has group_size 8; weights are taken over with group_size -1, or 16"),
        ({"version": "gemv"}, "has version 'gemv'; weights are taken over with version gemm"),
    ],
)
def test_other_packings_are_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        checkpoint(tmp_path / "c", {}, declare("awq") | changed)
