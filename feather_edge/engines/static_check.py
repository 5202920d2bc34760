"""Whether the parser of the TensorRT that a form is for can read it, told without TensorRT.

The opset-18 form of a graph is for the oldest TensorRT that is supported, which nobody has at hand
while exporting. What its parser knows is a list, so a graph can be held against it: operators, IR
version, opset and types, in function bodies and subgraphs too. Newer forms have the operators that
newer parsers add, and rules of their own that break without an error, or on the device only. Only
a build proves that a graph compiles; this check makes sure that it gets as far as that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from feather_edge.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

__all__ = ["check_portable", "portable_operators"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """A parser: the oldest that a form is for.

    Attributes:
        tensorrt: its version.
        max_opset: that it reads; ``max_ir_version`` likewise.
        operators: that it knows beside those of 10.1.
        types: that it takes everywhere; None where a build has to tell.
    """

    tensorrt: str
    max_opset: int
    max_ir_version: int
    operators: frozenset[str] = frozenset()
    types: tuple[str, ...] | None = None


_FUSED = frozenset({"Attention", "RMSNormalization", "RotaryEmbedding"})
READERS = {
    18: _Reader(
        tensorrt="10.3",
        max_opset=20,
        max_ir_version=10,
        types=("FLOAT", "FLOAT16", "INT32", "INT64", "BOOL"),
    ),
    23: _Reader(tensorrt="10.15", max_opset=23, max_ir_version=11, operators=_FUSED),
    24: _Reader(
        tensorrt="10.15",
        max_opset=24,
        max_ir_version=11,
        operators=_FUSED | {"TensorScatter"},
    ),
}
"""By the opset of the form."""
_NONPAD_KV_SEQLEN = 6
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")

_OPERATORS_FILE = Path(__file__).parent / "onnx_tensorrt_10.1_ops.txt"


@cache
def portable_operators() -> frozenset[str]:
    """Return the standard operators that the parser of TensorRT 10.1 imports."""
    lines = _OPERATORS_FILE.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


def check_portable(model: ir.Model, *, name: str, opset: int) -> None:
    """Refuse a form that the oldest TensorRT it is for cannot read.

    Types enter a graph by inputs, weights and attributes only, so these are what is checked.

    Args:
        model: weights are not read.
        name: of the graph, for the message.
        opset: of the form.

    Raises:
        BuildError: naming the first node or tensor that is outside, and what is allowed.
    """
    reader = READERS[opset]
    fault = next(_faults(model, reader), None)
    if fault is not None:
        raise BuildError(f"graph {name} is not for TensorRT {reader.tensorrt}: {fault}")


def _faults(model: ir.Model, reader: _Reader) -> Iterator[str]:
    import onnx_ir as ir

    if model.ir_version > reader.max_ir_version:
        yield f"its IR version is {model.ir_version}; at most {reader.max_ir_version} is read"
    functions = {(f.domain, f.name) for f in model.functions.values()}
    for where, imports in _opset_imports(model):
        opset = imports.get("", 0)
        if opset > reader.max_opset:
            yield f"{where} is of opset {opset}; at most {reader.max_opset} is read"
    for domain, op_type in sorted(functions):
        if op_type in portable_operators():
            yield (
                f"function {domain}::{op_type} has the name of a standard operator, which the "
                f"parser would take instead, whatever the domain"
            )
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        yield from _type_faults(f"tensor {value.name!r}", value.dtype, reader)
    bodies: tuple[ir.Graph | ir.Function, ...] = (model.graph, *model.functions.values())
    for body in bodies:
        for node in ir.traversal.RecursiveGraphIterator(body):
            yield from _node_faults(node, functions, reader)
            yield from _cache_faults(node, model)


def _opset_imports(model: ir.Model) -> Iterator[tuple[str, dict[str, int]]]:
    yield "it", dict(model.opset_imports)
    for function in model.functions.values():
        yield f"function {function.domain}::{function.name}", dict(function.opset_imports)


def _node_faults(node: ir.Node, functions: set[tuple[str, str]], reader: _Reader) -> Iterator[str]:
    import onnx_ir as ir

    where = f"node {node.name!r}"
    if node.domain not in {"", "ai.onnx"}:
        if (node.domain, node.op_type) not in functions:
            yield f"{where} is {node.domain}::{node.op_type}, which has no function in the model"
    elif node.op_type not in portable_operators() | reader.operators:
        yield f"{where} is {node.op_type}, which its parser does not know"
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.TENSOR:
            dtype = attribute.as_tensor().dtype
        elif attribute.name in _TYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT:
            dtype = ir.DataType(attribute.as_int())
        else:
            continue
        yield from _type_faults(f"attribute {attribute.name} of {where}", dtype, reader)


def _type_faults(subject: str, dtype: ir.DataType | None, reader: _Reader) -> Iterator[str]:
    if dtype is not None and reader.types is not None and dtype.name not in reader.types:
        yield f"{subject} is {dtype.name.lower()}; allowed are {', '.join(reader.types).lower()}"


def _cache_faults(node: ir.Node, model: ir.Model) -> Iterator[str]:
    """What of caches in place the parser takes otherwise than it is meant, or not at all."""
    where = f"node {node.name!r}"
    if node.op_type == "Attention" and len(node.inputs) > _NONPAD_KV_SEQLEN:
        yield f"{where} gives nonpad_kv_seqlen, which its parser drops; use a mask"
    if node.op_type != "TensorScatter":
        return
    if node.inputs[0] not in model.graph.inputs or node.outputs[0] not in model.graph.outputs:
        yield f"{where} updates what is not an input and an output of the graph"
    mode = node.attributes.get_string("mode", "linear")
    if mode != "linear":
        yield f"{where} updates in mode {mode}; only linear is read"
