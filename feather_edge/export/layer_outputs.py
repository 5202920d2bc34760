"""Copies of graphs that also give the hidden states after each layer, for comparison."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec
import onnx_ir as ir

from feather_edge.graphs import GraphSpec, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

_LAYER_OUTPUT = re.compile(r"layers\.\d+/mlp/residual/output")
_ROWS = ("layer_batch", "layer_rows", "layer_width")


def with_layer_outputs(file: Path, spec: GraphSpec) -> tuple[bytes, GraphSpec]:
    """Return a graph's bytes and contract with the output of each layer first among its outputs.

    The weights stay where they are; the bytes refer to them by the names of their files.
    """
    model = ir.load(file)
    dtype = spec.inputs[0].dtype
    marked = []
    for node in model.graph:
        for value in node.outputs:
            if not _LAYER_OUTPUT.fullmatch(str(value.name)) or value in model.graph.outputs:
                continue
            value.type = ir.TensorType(ir.DataType[dtype.upper().replace("FLOAT32", "FLOAT")])
            value.shape = ir.Shape(_ROWS)
            marked.append(value)
    model.graph.outputs[:] = [*marked, *model.graph.outputs]
    extra = tuple(TensorSpec(name=str(v.name), dtype=dtype, shape=_ROWS) for v in marked)
    grown = msgspec.structs.replace(spec, outputs=(*extra, *spec.outputs))
    return ir.to_proto(model).SerializeToString(), grown
