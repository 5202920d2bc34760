"""What a graph costs at least, read off its nodes: operations and bytes of weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["GraphCost", "graph_cost", "weight_bytes"]

MATRIX_PRODUCTS = ("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul")

Shape = tuple[int, ...]


class GraphCost(msgspec.Struct, frozen=True, kw_only=True):
    """The matrix products of a graph; all else is small beside them.

    Attributes:
        flops: of all of them, two per multiply-accumulate.
        matmul: (M, K, N) of the most expensive product with one matrix; None without any.
    """

    flops: int
    matmul: tuple[int, int, int] | None


def graph_cost(file: Path, sizes: Mapping[str, int]) -> GraphCost | None:
    """Count a graph's operations from the shapes that ONNX infers.

    Args:
        file: an ONNX graph of standard operators; its weights are not read.
        sizes: of the dimensions that its inputs name.

    Returns:
        None where shapes depend on values, so that nobody can count.
    """
    import onnx

    model = onnx.load(file, load_external_data=False)
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    for value in model.graph.output:  # its names would stand against the sizes
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes: dict[str, Shape] = {t.name: tuple(t.dims) for t in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    try:
        products = list(_products(inferred, shapes))
    except KeyError:
        return None
    sizes_known = [size for _, size in products if size is not None]
    return GraphCost(
        flops=sum(flops for flops, _ in products),
        matmul=max(sizes_known, key=math.prod, default=None),
    )


def weight_bytes(file: Path) -> int:
    """Return the bytes of a graph's weights, wherever they lie."""
    import onnx_ir as ir

    values = ir.load(file).graph.initializers.values()
    return sum(v.const_value.nbytes for v in values if v.const_value is not None)


def _products(
    graph: Any, shapes: Mapping[str, Shape]
) -> Iterator[tuple[int, tuple[int, int, int] | None]]:
    """Yield (operations, (M, K, N)) of each product; many small ones at once have no such size."""
    for node in graph.node:
        if node.op_type in MATRIX_PRODUCTS:
            left, out = shapes[node.input[0]], shapes[node.output[0]]
            size = (math.prod(out[:-1]), left[-1], out[-1])
            right = node.input[3 if node.op_type == "QLinearMatMul" else 1]
            yield 2 * math.prod(size), size if len(shapes[right]) == 2 else None
        elif node.op_type == "Conv":
            kernel, out = shapes[node.input[1]], shapes[node.output[0]]
            size = (math.prod(out) // out[1], math.prod(kernel[1:]), out[1])
            yield 2 * math.prod(size), size
        elif node.op_type == "Attention":
            query, key, out = (shapes[name] for name in (*node.input[:2], node.output[0]))
            # Width and heads stand elsewhere in [B, H, S, Dh] than in [B, S, H * Dh]; rows do not.
            yield 2 * key[-2] * (math.prod(query) + math.prod(out)), None
