"""Whether TensorRT 10.3's parser can read a graph, told without TensorRT.

The opset-18 form of a graph is for the oldest TensorRT that is supported, which nobody has at hand
while exporting. What its parser knows is a list, so a graph can be held against it: operators, IR
version, opset and types, in function bodies and subgraphs too. Only a build proves that a graph
compiles; this check makes sure that it gets as far as that.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from feather_edge.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

__all__ = ["MAX_IR_VERSION", "MAX_OPSET", "check_portable", "portable_operators"]

MAX_IR_VERSION = 10
MAX_OPSET = 20
TYPES = ("FLOAT", "FLOAT16", "INT32", "INT64", "BOOL")
"""Types that every TensorRT from 10.0 on takes in every operator of our graphs."""
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")

_OPERATORS_FILE = Path(__file__).parent / "onnx_tensorrt_10.1_ops.txt"


@cache
def portable_operators() -> frozenset[str]:
    """Return the standard operators that the parser of TensorRT 10.1 imports."""
    lines = _OPERATORS_FILE.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


def check_portable(model: ir.Model, *, name: str) -> None:
    """Refuse a model that TensorRT 10.3 cannot read.

    Types enter a graph by inputs, weights and attributes only, so these are what is checked.

    Args:
        model: weights are not read.
        name: of the graph, for the message.

    Raises:
        BuildError: naming the first node or tensor that is outside, and what is allowed.
    """
    fault = next(_faults(model), None)
    if fault is not None:
        raise BuildError(f"graph {name} is not for TensorRT 10.3: {fault}")


def _faults(model: ir.Model) -> Iterator[str]:
    import onnx_ir as ir

    if model.ir_version > MAX_IR_VERSION:
        yield f"its IR version is {model.ir_version}; at most {MAX_IR_VERSION} is read"
    functions = {(f.domain, f.name) for f in model.functions.values()}
    for where, imports in _opset_imports(model):
        opset = imports.get("", 0)
        if opset > MAX_OPSET:
            yield f"{where} is of opset {opset}; at most {MAX_OPSET} is read"
    for domain, op_type in sorted(functions):
        if op_type in portable_operators():
            yield (
                f"function {domain}::{op_type} has the name of a standard operator, which the "
                f"parser would take instead, whatever the domain"
            )
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        if value.dtype is not None and value.dtype.name not in TYPES:
            yield _wrong_type(f"tensor {value.name!r}", value.dtype)
    bodies: tuple[ir.Graph | ir.Function, ...] = (model.graph, *model.functions.values())
    for body in bodies:
        for node in ir.traversal.RecursiveGraphIterator(body):
            yield from _node_faults(node, functions)


def _opset_imports(model: ir.Model) -> Iterator[tuple[str, dict[str, int]]]:
    yield "it", dict(model.opset_imports)
    for function in model.functions.values():
        yield f"function {function.domain}::{function.name}", dict(function.opset_imports)


def _node_faults(node: ir.Node, functions: set[tuple[str, str]]) -> Iterator[str]:
    import onnx_ir as ir

    where = f"node {node.name!r}"
    if node.domain not in {"", "ai.onnx"}:
        if (node.domain, node.op_type) not in functions:
            yield f"{where} is {node.domain}::{node.op_type}, which has no function in the model"
    elif node.op_type not in portable_operators():
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
        if dtype.name not in TYPES:
            yield _wrong_type(f"attribute {attribute.name} of {where}", dtype)


def _wrong_type(subject: str, dtype: ir.DataType) -> str:
    return f"{subject} is {dtype.name.lower()}; allowed are {', '.join(TYPES).lower()}"
