"""Pieces that every block is made of: dense layers and activations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from feather_edge.errors import UnsupportedModelError
from feather_edge.export.dense import dense

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from feather_edge.export.builder import GraphBuilder


def activation(g: GraphBuilder, x: ir.Value, kind: str, *, name: str) -> ir.Value:
    """Apply the activation that a Hugging Face config calls ``kind``.

    Raises:
        UnsupportedModelError: if ``kind`` is none of silu, gelu, gelu_pytorch_tanh, quick_gelu.
    """
    if kind == "silu":
        return g.op("Mul", x, g.op("Sigmoid", x, name=f"{name}/sigmoid"), name=name)
    if kind == "gelu":
        return g.dialect.gelu(g, x, tanh=False, name=name)
    if kind == "gelu_pytorch_tanh":
        return g.dialect.gelu(g, x, tanh=True, name=name)
    if kind == "quick_gelu":
        scaled = g.op("Mul", x, g.scalar("quick_gelu_slope", 1.702), name=f"{name}/scale")
        return g.op("Mul", x, g.op("Sigmoid", scaled, name=f"{name}/sigmoid"), name=name)
    raise UnsupportedModelError(
        f"activation {kind!r} is not supported; "
        f"supported are gelu, gelu_pytorch_tanh, quick_gelu and silu"
    )


def linear(
    g: GraphBuilder,
    x: ir.Value,
    *modules: str,
    in_size: int,
    out_sizes: Sequence[int],
    has_bias: bool,
    name: str,
) -> ir.Value:
    """Dense layers that share their input, as one: outputs of ``modules`` side by side.

    ``out_sizes`` are the modules' widths; the graph's precision says how weights are stored.
    """
    form = g.precision.form_of(g.path(name))
    y = dense(g, x, *modules, in_size=in_size, out_sizes=out_sizes, form=form, name=name)
    if not has_bias:
        return y
    biases = (f"{module}.bias" for module in modules)
    bias = g.weight(
        *biases, shape=(sum(out_sizes),), first_dims=out_sizes, name=f"{g.path(name)}.bias"
    )
    return g.op("Add", y, bias, name=f"{name}/bias")
