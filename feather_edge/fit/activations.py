"""How much of a graph is alive at once, told from its nodes and the sizes of its inputs.

Nothing is run: ONNX infers every value's shape from the inputs' sizes, and the graph is walked in
order. A value counts from the node that makes it to the last one that reads it. Weights, and what
is computed from weights alone, do not count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from feather_edge.engines.memory import element_bits
from feather_edge.export.dense import PROBE_PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

__all__ = ["Activations", "activations"]

VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten"})
"""Operators whose output is their first input, read in another shape."""


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes of a graph at one size of its inputs.

    Attributes:
        live: most that is alive at once, inputs and outputs of the graph left out.
        scores: of the largest attention's scores, in float32, where an operator holds them.
        probes: of what a calibration takes out of the graph.
    """

    live: int
    scores: int
    probes: int


def activations(model: onnx.ModelProto, dims: Mapping[str, int]) -> Activations:
    """Return what is alive in ``model`` when its named dimensions are ``dims``."""
    import onnx

    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    for value in (*sized.graph.input, *sized.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in dims:
                dim.dim_value = dims[dim.dim_param]
    graph = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    shapes = {
        value.name: value.type.tensor_type
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    sizes = {name: _value_bytes(kind) for name, kind in shapes.items()}
    probes = sum(sizes[v.name] for v in graph.output if v.name.startswith(PROBE_PREFIX))
    return Activations(live=_peak(graph, sizes), scores=_scores(graph, shapes), probes=probes)


def _peak(graph: onnx.GraphProto, sizes: Mapping[str, int]) -> int:
    constant = {tensor.name for tensor in graph.initializer}
    outside = {value.name for value in (*graph.input, *graph.output)}
    owner: dict[str, str] = {}
    last_use: dict[str, int] = {}
    for number, node in enumerate(graph.node):
        inputs = [name for name in node.input if name]
        if all(name in constant for name in inputs):
            constant.update(node.output)
        for name in inputs:
            last_use[owner.get(name, name)] = number
        if node.op_type in VIEWS:
            owner[node.output[0]] = owner.get(node.input[0], node.input[0])
    alive: dict[str, int] = {}
    peak = 0
    for number, node in enumerate(graph.node):
        for name in node.output:
            if name and name not in constant and name not in outside and name not in owner:
                alive[name] = sizes.get(name, 0)
        peak = max(peak, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last_use.get(name, -1) > number}
    return peak


def _scores(graph: onnx.GraphProto, shapes: Mapping[str, onnx.TypeProto.Tensor]) -> int:
    """Return bytes of [B, H, S, T] of the largest attention."""
    largest = 0
    for node in graph.node:
        if node.op_type == "Attention" and len(node.input) > 1:
            query, key = (_shape(shapes.get(name)) for name in node.input[:2])
            heads = {attribute.name: attribute.i for attribute in node.attribute}
            if len(query) == len(key) == 4:  # [B, H, S, Dh]
                largest = max(largest, math.prod(query[:3]) * key[2] * 4)
            elif len(query) == len(key) == 3:  # [B, S, H * Dh]
                rows = query[0] * heads.get("q_num_heads", 1) * query[1]
                largest = max(largest, rows * key[1] * 4)
    return largest


def _shape(kind: onnx.TypeProto.Tensor | None) -> tuple[int, ...]:
    return () if kind is None else tuple(dim.dim_value for dim in kind.shape.dim)


def _value_bytes(kind: onnx.TypeProto.Tensor) -> int:
    return math.prod(_shape(kind)) * element_bits(kind.elem_type) // 8
