"""The InternViT tower: class token, layer scale, an option to normalise queries and keys.

Letters: N images, C channels, V patches, Dv width of the tower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from feather_edge.export.operators import activation, linear

if TYPE_CHECKING:
    import onnx_ir as ir

    from feather_edge.checkpoint.internvit_config import InternVitConfig
    from feather_edge.export.builder import GraphBuilder

QK_NORM_EPS = 1e-6
"""Of the norms of queries and keys, whatever the config says of the others."""


def internvit_tower(
    g: GraphBuilder, pixels: ir.Value, vision: InternVitConfig, *, num_layers: int
) -> ir.Value:
    """Write a tower's first ``num_layers`` layers; returns hidden states [N, 1 + V, Dv].

    Args:
        g: the graph.
        pixels: [N, C, height, width].
        vision: the tower's sizes.
        num_layers: 0 is the embeddings. The final norm is not among them.
    """
    hidden = _embeddings(g, pixels, vision)
    for layer in range(num_layers):
        hidden = _layer(g, hidden, layer, vision)
    return hidden


def internvit_final_norm(g: GraphBuilder, hidden: ir.Value, vision: InternVitConfig) -> ir.Value:
    """Write the norm after the last layer, which not all towers have."""
    return _layer_norm(g, hidden, "vision.layernorm", vision)


def _embeddings(g: GraphBuilder, pixels: ir.Value, vision: InternVitConfig) -> ir.Value:
    width, patch = vision.hidden_size, vision.patch_size
    with g.scope("embeddings"):
        shape = (width, vision.num_channels, patch, patch)
        projection = "vision.embeddings.patch_embeddings.projection"
        kernel = g.weight(f"{projection}.weight", shape=shape)
        bias = g.weight(f"{projection}.bias", shape=(width,))
        grid = g.op("Conv", pixels, kernel, bias, name="patches", strides=[patch, patch])
        flat = g.op("Reshape", grid, g.ints(0, width, -1), name="flatten")  # [N, Dv, V]
        rows = g.op("Transpose", flat, name="rows", perm=[0, 2, 1])  # [N, V, Dv]
        token = g.weight("vision.embeddings.cls_token", shape=(1, 1, width))
        num_images = g.op("Shape", pixels, name="num_images", start=0, end=1)
        class_shape = g.op("Concat", num_images, g.ints(1, width), name="class_shape", axis=0)
        class_token = g.op("Expand", token, class_shape, name="class_token")
        hidden = g.op("Concat", class_token, rows, name="with_class_token", axis=1)
        if not vision.has_positions:
            return hidden
        table = g.weight(
            "vision.embeddings.position_embeddings", shape=(1, 1 + vision.num_patches, width)
        )
        return g.op("Add", hidden, table, name="position_embeddings")


def _layer(g: GraphBuilder, hidden: ir.Value, layer: int, vision: InternVitConfig) -> ir.Value:
    prefix, width = f"vision.encoder.layer.{layer}", vision.hidden_size
    with g.scope(f"layers.{layer}"):
        with g.scope("attention"):
            normed = _norm(g, hidden, f"{prefix}.layernorm_before", vision)
            attended = _attention(g, normed, f"{prefix}.attention", vision)
            scale = g.weight(f"{prefix}.lambda_1", shape=(width,))
            scaled = g.op("Mul", attended, scale, name="layer_scale")
            hidden = g.op("Add", hidden, scaled, name="residual")
        with g.scope("mlp"):
            normed = _norm(g, hidden, f"{prefix}.layernorm_after", vision)
            wide = linear(
                g,
                normed,
                f"{prefix}.mlp.fc1",
                in_size=width,
                out_sizes=(vision.intermediate_size,),
                has_bias=True,
                name="fc1",
            )
            narrow = linear(
                g,
                activation(g, wide, vision.hidden_act, name="act"),
                f"{prefix}.mlp.fc2",
                in_size=vision.intermediate_size,
                out_sizes=(width,),
                has_bias=True,
                name="fc2",
            )
            scale = g.weight(f"{prefix}.lambda_2", shape=(width,))
            scaled = g.op("Mul", narrow, scale, name="layer_scale")
            return g.op("Add", hidden, scaled, name="residual")


def _attention(
    g: GraphBuilder, normed: ir.Value, prefix: str, vision: InternVitConfig
) -> ir.Value:
    width, heads = vision.hidden_size, vision.num_attention_heads
    qkv = linear(
        g,
        normed,
        *(f"{prefix}.{part}_proj" for part in "qkv"),
        in_size=width,
        out_sizes=(width, width, width),
        has_bias=vision.attention_bias,
        name="qkv_proj",
    )
    query, key, value = g.ops(
        "Split",
        qkv,
        g.ints(width, width, width),
        name="split",
        outputs=["query", "key", "value"],
        axis=-1,
    )
    if vision.has_qk_norm:
        query, key = (
            g.dialect.rms_norm(
                g,
                x,
                g.weight(f"{prefix}.{part}_norm.weight", shape=(width,)),
                eps=QK_NORM_EPS,
                name=f"{part}_norm",
            )
            for part, x in (("q", query), ("k", key))
        )
    attended = g.dialect.packed_attention(
        g, query, key, value, num_heads=heads, head_dim=width // heads, name="attention"
    )
    return linear(
        g,
        attended,
        f"{prefix}.projection_layer",
        in_size=width,
        out_sizes=(width,),
        has_bias=True,
        name="projection_layer",
    )


def _norm(g: GraphBuilder, x: ir.Value, module: str, vision: InternVitConfig) -> ir.Value:
    if vision.norm_type == "layer_norm":
        return _layer_norm(g, x, module, vision)
    weight = g.weight(f"{module}.weight", shape=(vision.hidden_size,))
    return g.dialect.rms_norm(g, x, weight, eps=vision.layer_norm_eps, name="norm")


def _layer_norm(g: GraphBuilder, x: ir.Value, module: str, vision: InternVitConfig) -> ir.Value:
    weight, bias = (
        g.weight(f"{module}.{part}", shape=(vision.hidden_size,)) for part in ("weight", "bias")
    )
    return g.op(
        "LayerNormalization", x, weight, bias, name="norm", axis=-1, epsilon=vision.layer_norm_eps
    )
