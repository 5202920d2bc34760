"""The operators that differ between opsets, each written once.

Everything else in the blocks is plain ONNX of any age. Shapes as in ``feather_edge.graphs``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from feather_edge.errors import UnsupportedModelError

if TYPE_CHECKING:
    import onnx_ir as ir

    from feather_edge.export.builder import GraphBuilder


def rms_norm(g: GraphBuilder, x: ir.Value, weight: ir.Value, *, eps: float, name: str) -> ir.Value:
    """Root-mean-square normalisation over the last axis, accumulated in float32."""
    return g.op("RMSNormalization", x, weight, name=name, axis=-1, epsilon=eps, stash_type=1)


def rotary(g: GraphBuilder, x: ir.Value, cos: ir.Value, sin: ir.Value, *, name: str) -> ir.Value:
    """Rotary embedding of ``x`` [B, heads, S, Dh], halves paired, by tables [B, S, Dh/2]."""
    return g.op("RotaryEmbedding", x, cos, sin, name=name)


def attention(
    g: GraphBuilder,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    *,
    mask: ir.Value | None = None,
    num_heads: int | None = None,
    name: str,
) -> ir.Value:
    """Scaled dot-product attention, grouped when there are fewer key heads than query heads.

    Takes [B, heads, S, Dh] tensors, or [B, S, heads * Dh] ones when ``num_heads`` is given, and
    returns the same kind. The mask is explicit: TensorRT refuses ``is_causal`` beside a mask, and
    a causal flag alone would need every runtime to agree on the offset of cached positions.
    """
    heads = {} if num_heads is None else {"q_num_heads": num_heads, "kv_num_heads": num_heads}
    inputs = (query, key, value) if mask is None else (query, key, value, mask)
    return g.op("Attention", *inputs, name=name, **heads)


def activation(g: GraphBuilder, x: ir.Value, kind: str, *, name: str) -> ir.Value:
    """Apply the activation that a Hugging Face config calls ``kind``.

    Raises:
        UnsupportedModelError: if ``kind`` is none of silu, gelu, gelu_pytorch_tanh, quick_gelu.
    """
    if kind == "silu":
        return g.op("Mul", x, g.op("Sigmoid", x, name=f"{name}/sigmoid"), name=name)
    if kind == "gelu":
        return g.op("Gelu", x, name=name)
    if kind == "gelu_pytorch_tanh":
        return g.op("Gelu", x, name=name, approximate="tanh")
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
    has_bias: bool,
    name: str,
) -> ir.Value:
    """Dense layers that share their input, as one MatMul: outputs of ``modules`` side by side.

    The checkpoint stores [out, in]; MatMul reads [in, out].
    """
    weight = g.weight(
        *(f"{module}.weight" for module in modules),
        shape=(-1, in_size),
        name=f"{g.path(name)}.weight",
        transpose=True,
    )
    y = g.op("MatMul", x, weight, name=name)
    if not has_bias:
        return y
    biases = (f"{module}.bias" for module in modules)
    return g.op(
        "Add",
        y,
        g.weight(*biases, shape=(-1,), name=f"{g.path(name)}.bias"),
        name=f"{name}/bias",
    )
