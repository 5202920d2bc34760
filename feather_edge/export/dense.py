r"""Dense layers without their bias, in each form that weights can have.

================  ===============================================================================
form              nodes
================  ===============================================================================
float             ``MatMul``
int8, int4        ``DequantizeLinear`` of codes [in, out] with a scale for each block of inputs,
                  then ``MatMul``. TensorRT reads it as it is, ONNX Runtime makes ``MatMulNBits``
                  of it, which it does for blocks along the first axis only: weights lie as
                  [in, out] and no ``Transpose`` stands between the two nodes
int8-dynamic      ``DynamicQuantizeLinear`` of what enters, ``MatMulInteger`` with codes that have
                  a scale for each output; ONNX Runtime makes ``DynamicQuantizeMatMul`` of it.
                  Before it, where a calibration says so, inputs are evened out and rows brought
                  to one size
taken over        as int4; the checkpoint's own codes and scales
================  ===============================================================================

TensorRT takes no zero points. Where a checkpoint has them, they become a second, small product:
x (s (q - z)) = x (s q) - (sums of blocks of x) (s z).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from feather_edge.export.quantise import BlockQuantised, ChannelQuantised, pack_int4
from feather_edge.recipes.precision import MIN_BLOCK_SIZE

PROBE_PREFIX = "probe:"
"""What the names of a calibration graph's extra outputs start with."""

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from feather_edge.checkpoint.packed import PackedLinear
    from feather_edge.checkpoint.reader import TensorView
    from feather_edge.export.builder import GraphBuilder
    from feather_edge.export.precision import WeightForm


def dense(
    g: GraphBuilder,
    x: ir.Value,
    *modules: str,
    in_size: int,
    out_sizes: Sequence[int],
    form: WeightForm,
    name: str,
) -> ir.Value:
    """Multiply ``x`` [..., in] by the weights of ``modules`` side by side: [..., out].

    A module that the checkpoint holds quantised is taken as it is, whatever ``form`` says.
    """
    if g.weights.is_packed(modules[0]):
        packed = [
            g.weights.packed_linear(module, in_size=in_size, out_size=out_size)
            for module, out_size in zip(modules, out_sizes, strict=True)
        ]
        return _taken_over(g, x, packed, in_size=in_size, name=name)
    sources = [f"{module}.weight" for module in modules]
    views = [
        g.weights.tensor(source, shape=(out_size, in_size))
        for source, out_size in zip(sources, out_sizes, strict=True)
    ]
    # TensorRT and OpenVINO take whole blocks only.
    block_size = math.gcd(in_size, g.precision.block_size)
    if form in {"int8", "int4"} and block_size < MIN_BLOCK_SIZE:
        form = "float"
    if form in {"float", "probe"}:
        weight = g.weight(
            *sources,
            shape=(sum(out_sizes), in_size),
            first_dims=out_sizes,
            name=f"{g.path(name)}.weight",
            transpose=True,
        )
        y = g.op("MatMul", x, weight, name=name)
        if form == "probe":
            entering = g.op("Identity", x, name=f"{name}/entering")
            g.extra_output(f"{PROBE_PREFIX}{g.path(name)}", entering)
        return y
    if form == "int8-dynamic":
        return _dynamic(g, x, views, name=name)
    bits = 4 if form == "int4" else 8
    return _in_blocks(g, x, views, bits=bits, block_size=block_size, name=name)


def _in_blocks(
    g: GraphBuilder,
    x: ir.Value,
    views: Sequence[TensorView],
    *,
    bits: int,
    block_size: int,
    name: str,
) -> ir.Value:
    precision = g.precision
    quantised = BlockQuantised(
        views,
        bits=bits,
        block_size=block_size,
        clipping=precision.clipping,
        dtype=np.dtype(precision.dtype),
    )
    in_size, out_size = views[0].shape[1], sum(view.shape[0] for view in views)
    return _blocks_product(
        g,
        x,
        quantised.scales,
        quantised.codes,
        shape=(in_size, out_size),
        bits=bits,
        block_size=block_size,
        name=name,
    )


def _blocks_product(
    g: GraphBuilder,
    x: ir.Value,
    read_scales: Callable[[], NDArray[Any]],
    read_codes: Callable[[], NDArray[np.int8]],
    *,
    shape: tuple[int, int],
    bits: int,
    block_size: int,
    name: str,
) -> ir.Value:
    in_size, out_size = shape
    # The scales come first: see BlockQuantised.
    scales = g.lazy(
        f"{g.path(name)}.scales",
        lambda: ir.Tensor(read_scales()),
        dtype=g.dtype,
        shape=(in_size // block_size, out_size),
    )
    codes = g.lazy(
        f"{g.path(name)}.int{bits}",
        lambda: ir.Tensor(read_codes()) if bits == 8 else _int4(read_codes()),
        dtype="int8" if bits == 8 else "int4",
        shape=shape,
    )
    weight = g.op(
        "DequantizeLinear",
        codes,
        scales,
        name=f"{name}/dequantise",
        axis=0,
        block_size=block_size,
    )
    return g.op("MatMul", x, weight, name=name)


def _dynamic(g: GraphBuilder, x: ir.Value, views: Sequence[TensorView], *, name: str) -> ir.Value:
    path = g.path(name)
    rounding = g.precision.roundings.get(path)
    if rounding is not None and rounding.smoothing is not None:
        inverse = (1 / rounding.smoothing).astype(np.float32)
        factors = g.lazy(
            f"{path}.smoothing", lambda: ir.Tensor(inverse), dtype="float32", shape=inverse.shape
        )
        x = g.op("Mul", x, factors, name=f"{name}/smooth")
    if rounding is None or not rounding.is_per_row:
        return _rounded_product(g, x, views, name=name)
    size = g.op("ReduceMax", g.op("Abs", x, name=f"{name}/sizes"), g.ints(-1), name=f"{name}/size")
    least = g.constant("least_row_size", np.array(np.finfo(np.float32).tiny))
    size = g.op("Max", size, least, name=f"{name}/some_size")  # [..., 1]
    even = g.op("Div", x, size, name=f"{name}/even_rows")
    return g.op("Mul", _rounded_product(g, even, views, name=name), size, name=f"{name}/rows")


def _rounded_product(
    g: GraphBuilder, x: ir.Value, views: Sequence[TensorView], *, name: str
) -> ir.Value:
    path = g.path(name)
    rounding = g.precision.roundings.get(path)
    quantised = ChannelQuantised(views, None if rounding is None else rounding.smoothing)
    in_size, out_size = views[0].shape[1], sum(view.shape[0] for view in views)
    scales = g.lazy(
        f"{path}.scales", lambda: ir.Tensor(quantised.scales()), dtype="float32", shape=(out_size,)
    )
    codes = g.lazy(
        f"{path}.int8",
        lambda: ir.Tensor(quantised.codes()),
        dtype="int8",
        shape=(in_size, out_size),
    )
    rounded, x_scale, x_zero = g.ops(
        "DynamicQuantizeLinear", x, name=f"{name}/quantise", outputs=["codes", "scale", "zero"]
    )
    product = g.op("MatMulInteger", rounded, codes, x_zero, name=name)
    wide = g.op("Cast", product, name=f"{name}/float", to=int(ir.DataType.FLOAT))
    scale = g.op("Mul", x_scale, scales, name=f"{name}/scale")
    return g.op("Mul", wide, scale, name=f"{name}/dequantise")


def _taken_over(
    g: GraphBuilder, x: ir.Value, packed: Sequence[PackedLinear], *, in_size: int, name: str
) -> ir.Value:
    dtype = np.dtype(g.dtype)
    group_size = packed[0].group_size

    def scales() -> NDArray[Any]:
        return np.concatenate([each.scales() for each in packed], axis=1).astype(dtype)

    def codes() -> NDArray[np.int8]:
        return np.concatenate([each.codes() for each in packed], axis=1)

    def zeros() -> NDArray[np.int8]:
        return np.concatenate([each.zeros() for each in packed], axis=1)

    out_size = sum(each.out_size for each in packed)
    y = _blocks_product(
        g,
        x,
        scales,
        codes,
        shape=(in_size, out_size),
        bits=4,
        block_size=group_size,
        name=name,
    )
    if all(each.is_symmetric() for each in packed):
        return y
    num_groups = in_size // group_size
    offsets = g.lazy(
        f"{g.path(name)}.offsets",
        lambda: ir.Tensor((scales().astype(np.float32) * -zeros()).astype(dtype)),
        dtype=g.dtype,
        shape=(num_groups, out_size),
    )
    blocks = g.op("Reshape", x, g.ints(0, 0, num_groups, group_size), name=f"{name}/blocks")
    sums = g.op("ReduceSum", blocks, g.ints(-1), name=f"{name}/block_sums", keepdims=0)
    offset = g.op("MatMul", sums, offsets, name=f"{name}/offset")
    return g.op("Add", y, offset, name=f"{name}/add_offset")


def _int4(codes: NDArray[np.int8]) -> ir.TensorProtocol:
    return ir.PackedTensor(pack_int4(codes), ir.DataType.INT4, shape=ir.Shape(codes.shape))
