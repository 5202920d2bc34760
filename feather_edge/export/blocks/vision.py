"""CLIP and SigLIP vision towers, and those like them: patches, layers, feature selection.

Letters: N images, C channels, V patches, Dv width of the tower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from feather_edge.export.operators import activation, linear

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from feather_edge.checkpoint.vision_config import VisionConfig
    from feather_edge.export.builder import GraphBuilder


def vision_tower(
    g: GraphBuilder,
    pixels: ir.Value,
    vision: VisionConfig,
    *,
    feature_layers: Sequence[int],
    position_ids: Sequence[int] | None = None,
) -> list[ir.Value]:
    """Write a tower up to the deepest layer asked for.

    Args:
        g: the graph.
        pixels: [N, C, height, width].
        vision: the tower's sizes.
        feature_layers: after how many layers to take the features; 0 is the embeddings.
        position_ids: [V], which row of the table of positions each patch takes; None for all
            rows in order.

    Returns:
        Hidden states [N, V, Dv] ([N, 1 + V, Dv] with CLIP's class token), one per entry.
    """
    hidden = _embeddings(g, pixels, vision, position_ids)
    states = [hidden]
    for layer in range(max(feature_layers)):
        hidden = _vision_layer(g, hidden, layer, vision)
        states.append(hidden)
    return [states[layer] for layer in feature_layers]


def layer_norm(g: GraphBuilder, x: ir.Value, module: str, vision: VisionConfig) -> ir.Value:
    """Write a LayerNorm over the tower's width with the weights of ``module``."""
    weight, bias = (
        g.weight(f"{module}.{part}", shape=(vision.hidden_size,)) for part in ("weight", "bias")
    )
    name = module.rpartition(".")[2]
    return g.op(
        "LayerNormalization", x, weight, bias, name=name, axis=-1, epsilon=vision.layer_norm_eps
    )


def _embeddings(
    g: GraphBuilder,
    pixels: ir.Value,
    vision: VisionConfig,
    position_ids: Sequence[int] | None,
) -> ir.Value:
    is_clip = vision.model_type == "clip_vision_model"
    width, patch = vision.hidden_size, vision.patch_size
    num_positions = (vision.image_size // patch) ** 2 + is_clip
    with g.scope("embeddings"):
        kernel = g.weight(
            "vision.embeddings.patch_embedding.weight",
            shape=(width, vision.num_channels, patch, patch),
        )
        bias = (
            [] if is_clip else [g.weight("vision.embeddings.patch_embedding.bias", shape=(width,))]
        )
        strides = [patch, patch]
        grid = g.op("Conv", pixels, kernel, *bias, name="patch_embedding", strides=strides)
        flat = g.op("Reshape", grid, g.ints(0, width, -1), name="flatten")  # [N, Dv, V]
        hidden = g.op("Transpose", flat, name="patches", perm=[0, 2, 1])  # [N, V, Dv]
        if is_clip:
            token = g.weight("vision.embeddings.class_embedding", shape=(width,))
            num_images = g.op("Shape", pixels, name="num_images", start=0, end=1)
            shape = g.op("Concat", num_images, g.ints(1, width), name="class_shape", axis=0)
            class_token = g.op("Expand", token, shape, name="class_token")
            hidden = g.op("Concat", class_token, hidden, name="with_class_token", axis=1)
        table = g.weight(
            "vision.embeddings.position_embedding.weight", shape=(num_positions, width)
        )
        if position_ids is not None:
            rows = g.constant("position_ids", np.array(position_ids, np.int64))
            table = g.op("Gather", table, rows, name="positions", axis=0)
        hidden = g.op("Add", hidden, table, name="position_embedding")
        if is_clip:  # "layrnorm" is how CLIP spells it
            hidden = layer_norm(g, hidden, "vision.pre_layrnorm", vision)
    return hidden


def _vision_layer(g: GraphBuilder, hidden: ir.Value, layer: int, vision: VisionConfig) -> ir.Value:
    prefix, width = f"vision.encoder.layers.{layer}", vision.hidden_size
    with g.scope(f"layers.{layer}"):
        with g.scope("self_attn"):
            normed = layer_norm(g, hidden, f"{prefix}.layer_norm1", vision)
            qkv = linear(
                g,
                normed,
                *(f"{prefix}.self_attn.{part}_proj" for part in "qkv"),
                in_size=width,
                out_sizes=(width, width, width),
                has_bias=True,
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
            heads = vision.num_attention_heads
            attended = g.dialect.packed_attention(
                g, query, key, value, num_heads=heads, head_dim=width // heads, name="attention"
            )
            output = linear(
                g,
                attended,
                f"{prefix}.self_attn.out_proj",
                in_size=width,
                out_sizes=(width,),
                has_bias=True,
                name="out_proj",
            )
            hidden = g.op("Add", hidden, output, name="residual")
        with g.scope("mlp"):
            normed = layer_norm(g, hidden, f"{prefix}.layer_norm2", vision)
            wide = linear(
                g,
                normed,
                f"{prefix}.mlp.fc1",
                in_size=width,
                out_sizes=(vision.intermediate_size,),
                has_bias=True,
                name="fc1",
            )
            acted = activation(g, wide, vision.hidden_act, name="act")
            narrow = linear(
                g,
                acted,
                f"{prefix}.mlp.fc2",
                in_size=vision.intermediate_size,
                out_sizes=(width,),
                has_bias=True,
                name="fc2",
            )
            return g.op("Add", hidden, narrow, name="residual")
