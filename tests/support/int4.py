"""A graph with its dense weights in int4 blocks, as standard ``DequantizeLinear`` nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["BLOCK_SIZE", "with_int4_weights"]

BLOCK_SIZE = 32


def with_int4_weights(source: Path, target: Path) -> int:
    """Write ``source`` with every MatMul weight [K, N] in int4 blocks along K; return how many."""
    model = ir.load(source)
    quantised = 0
    for node in list(model.graph):
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is None or weight.const_value is None:
            continue
        values, scales = _blocks(weight.const_value.numpy())
        codes = _initializer(model, f"{weight.name}.int4", values)
        blocks = _initializer(model, f"{weight.name}.scales", scales)
        dequantise = ir.node(
            "DequantizeLinear",
            [codes, blocks],
            attributes={"axis": 0, "block_size": BLOCK_SIZE},
            name=f"{node.name}/dequantise",
        )
        model.graph.insert_before(node, dequantise)
        node.replace_input_with(1, dequantise.outputs[0])
        del model.graph.initializers[str(weight.name)]
        quantised += 1
    ir.save(model, target, external_data=f"{target.name}_data")
    return quantised


def _blocks(weight: NDArray[np.float16]) -> tuple[NDArray[np.generic], NDArray[np.float16]]:
    """Return codes [K, N] in -7..7 and scales [K / BLOCK_SIZE, N]."""
    depth, width = weight.shape
    grouped = weight.astype(np.float32).reshape(depth // BLOCK_SIZE, BLOCK_SIZE, width)
    scales = (np.abs(grouped).max(axis=1) / 7).astype(weight.dtype)
    codes = np.round(grouped / np.maximum(scales, 1e-6)[:, None].astype(np.float32))
    return codes.reshape(depth, width).clip(-7, 7).astype(ml_dtypes.int4), scales


def _initializer(model: ir.Model, name: str, values: NDArray[np.generic]) -> ir.Value:
    tensor = ir.tensor(values, name=name)
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(values.shape),
        const_value=tensor,
    )
    model.graph.initializers[name] = value
    return value
