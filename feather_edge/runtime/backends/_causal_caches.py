"""Segments with grown caches, rewritten for ONNX Runtime so that their caches are kept in place.

Standard ``Attention`` takes keys and values that ``Concat`` has just copied, and a dense mask that
it reads in full. ONNX Runtime's own ``GroupQueryAttention`` appends the new rows to the buffer it
was given and computes below the diagonal only, but it knows causal attention and no other. So this
is for decoders whose prompts are causal; what has a window, a soft cap or a prefix stays as it is.

The bundle keeps its standard graphs: the rewritten one exists in memory, over the same weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from feather_edge.graphs import CACHE_CAPACITY, WRITE_INDICES

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from feather_edge.graphs import GraphSpec, TensorSpec

DOMAIN = "com.microsoft"
MASK = "attention_mask"
HEAD_DIM_STEP = 8
"""ONNX Runtime's kernel takes head widths that are multiples of this."""


def with_caches_in_place(
    file: Path, spec: GraphSpec, *, num_heads: int
) -> tuple[bytes, GraphSpec] | None:
    """Return a causal segment with its caches in place, and its contract; None if it has none.

    Args:
        file: of the graph, in the form of opset 23.
        spec: its contract.
        num_heads: of the queries.
    """
    if not is_eligible(spec):
        return None
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(file, load_external_data=False)
    except (OSError, DecodeError):
        return None  # whoever opens the file itself says what is wrong with it
    graph = model.graph
    maker = {output: node for node in graph.node for output in node.output}
    attentions = [node for node in graph.node if node.op_type == "Attention"]
    found = {node.name: _appended(node, maker) for node in attentions}
    if len(found) * 2 != len(spec.caches) or not all(found.values()):
        return None
    replaced = {id(part) for parts in found.values() for part in parts or ()}
    num_kv_heads = int(_past_specs(spec)[0].shape[1])
    nodes = _lengths(graph, num_heads)
    for node in graph.node:
        parts = found.get(node.name) if node.op_type == "Attention" else None
        if parts is not None:
            nodes += _group_query(node, *parts, heads=(num_heads, num_kv_heads))
        elif id(node) not in replaced:
            nodes.append(node)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    _change_contract(graph)
    model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return model.SerializeToString(), _in_place(spec)


def is_eligible(spec: GraphSpec) -> bool:
    """Return whether the contract of a causal model's graph lets its caches be kept in place."""
    if spec.caches_in_place or not spec.caches:
        return False
    masks = [tensor.name for tensor in spec.inputs if tensor.name.endswith(MASK)]
    head_dim = int(_past_specs(spec)[0].shape[3])
    return masks == [MASK] and spec.inputs[0].dtype == "float32" and head_dim % HEAD_DIM_STEP == 0


def _past_specs(spec: GraphSpec) -> list[TensorSpec]:
    past = set(spec.caches.values())
    return [tensor for tensor in spec.inputs if tensor.name in past]


def _appended(attention: Any, maker: dict[str, Any]) -> tuple[Any, Any] | None:
    """Return the nodes that append an attention's new keys and values, if it is a plain one."""
    if len(attention.input) != 4 or attention.input[3] != MASK:
        return None
    key, value = (maker.get(name) for name in attention.input[1:3])
    if key is None or value is None or {key.op_type, value.op_type} != {"Concat"}:
        return None
    return key, value


def _lengths(graph: Any, num_heads: int) -> list[Any]:
    """Add constants to the graph; return nodes that count slots as the operator wants them."""
    from onnx import TensorProto, helper, numpy_helper

    constants: dict[str, NDArray[Any]] = {
        "causal/one": np.array([1], np.int32),
        "causal/packed": np.array([0, 0, -1], np.int64),
        "causal/by_head": np.array([0, 0, num_heads, -1], np.int64),
    }
    for name, values in constants.items():
        graph.initializer.append(numpy_helper.from_array(values, name))
    return [
        helper.make_node("Shape", ["cos"], ["causal/new"], start=1, end=2),
        helper.make_node("Add", [WRITE_INDICES, "causal/new"], ["causal/filled"]),
        helper.make_node("Cast", ["causal/filled"], ["causal/filled32"], to=TensorProto.INT32),
        helper.make_node("Sub", ["causal/filled32", "causal/one"], ["causal/last_slot"]),
        helper.make_node("Squeeze", ["causal/filled32"], ["causal/total"]),
    ]


def _group_query(attention: Any, key: Any, value: Any, *, heads: tuple[int, int]) -> list[Any]:
    """Return the nodes for ``Attention`` [B, H, S, Dh] and the two that append to its caches."""
    from onnx import helper

    nodes, packed = [], []
    for part, name in (("q", attention.input[0]), ("k", key.input[1]), ("v", value.input[1])):
        rows, flat = (f"{attention.name}/{part}_{form}" for form in ("rows", "packed"))
        nodes.append(helper.make_node("Transpose", [name], [rows], perm=[0, 2, 1, 3]))
        nodes.append(helper.make_node("Reshape", [rows, "causal/packed"], [flat]))  # [B, S, H Dh]
        packed.append(flat)
    scales = {a.name: a.f for a in attention.attribute if a.name == "scale"}
    attended = f"{attention.name}/attended"
    nodes.append(
        helper.make_node(
            "GroupQueryAttention",
            [*packed, key.input[0], value.input[0], "causal/last_slot", "causal/total"],
            [attended, key.output[0], value.output[0]],
            name=attention.name,
            domain=DOMAIN,
            num_heads=heads[0],
            kv_num_heads=heads[1],
            **scales,
        )
    )
    # What follows wants heads first; ONNX Runtime drops the pair of transpositions.
    split = f"{attention.name}/by_head"
    nodes.append(helper.make_node("Reshape", [attended, "causal/by_head"], [split]))
    nodes.append(helper.make_node("Transpose", [split], [attention.output[0]], perm=[0, 2, 1, 3]))
    return nodes


def _change_contract(graph: Any) -> None:
    from onnx import TensorProto, helper

    (mask,) = (tensor for tensor in graph.input if tensor.name == MASK)
    graph.input.remove(mask)
    graph.input.append(helper.make_tensor_value_info(WRITE_INDICES, TensorProto.INT64, ["batch"]))
    for tensor in (*graph.input, *graph.output):
        if tensor.name.startswith(("past_key_values.", "present.")):
            tensor.type.tensor_type.shape.dim[2].dim_param = CACHE_CAPACITY


def _in_place(spec: GraphSpec) -> GraphSpec:
    changed = spec.with_caches_in_place()
    inputs = tuple(tensor for tensor in changed.inputs if tensor.name != MASK)
    return msgspec.structs.replace(changed, inputs=inputs)
