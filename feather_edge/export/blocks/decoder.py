"""The decoder segment of Llama and its relatives, down to Gemma: layers, score, head.

Letters as in ``feather_edge.graphs``: B, S, T, D, H query heads, Hkv, Dh, F width of the MLP.
About 22 nodes a layer: norm, qkv, split, two rotations, two cache updates, attention, output, and
a gated MLP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from feather_edge.export.dialects import bounded
from feather_edge.export.operators import activation, linear

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from feather_edge.checkpoint.text_config import TextConfig
    from feather_edge.export.builder import GraphBuilder

FROM_LAST = np.iinfo(np.int64).max
"""End of a Slice that runs to the end of its axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerOutput:
    """What a decoder layer gives: hidden states [B,S,D], the new cache, and q, k before rotary."""

    hidden: ir.Value
    present_key: ir.Value
    present_value: ir.Value
    raw_query: ir.Value
    raw_key: ir.Value


def decoder_layer(g: GraphBuilder, hidden: ir.Value, layer: int, text: TextConfig) -> LayerOutput:
    """Write decoder layer ``layer``; returns its outputs."""
    prefix = f"text.layers.{layer}"
    with g.scope(f"layers.{layer}"):
        with g.scope("self_attn"):
            normed = _norm(g, hidden, f"{prefix}.input_layernorm", text, name="norm")
            query, key, value = _project_qkv(g, normed, f"{prefix}.self_attn", text)
            mask, cos, sin = _attention_inputs(g, layer, text)
            present_key, seen_keys = g.dialect.update_cache(
                g,
                g.inputs[f"past_key_values.{layer}.key"],
                g.dialect.rotary(g, key, cos, sin, name="rotary_key"),
                name="present_key",
            )  # seen: [B, Hkv, T, Dh]
            present_value, seen_values = g.dialect.update_cache(
                g, g.inputs[f"past_key_values.{layer}.value"], value, name="present_value"
            )
            attended = g.dialect.attention(
                g,
                g.dialect.rotary(g, query, cos, sin, name="rotary_query"),
                seen_keys,
                seen_values,
                mask,
                heads=(text.num_attention_heads, text.num_key_value_heads),
                head_dim=text.head_dim,
                name="attention",
                scale=text.attention_scale,
                softcap=text.attention_softcap,
            )  # [B, H, S, Dh]
            merged = _merge_heads(g, attended, text)
            output = linear(
                g,
                merged,
                f"{prefix}.self_attn.o_proj",
                in_size=text.num_attention_heads * text.head_dim,
                out_sizes=(text.hidden_size,),
                has_bias=text.output_bias,
                name="o_proj",
            )
            if text.has_post_norms:
                after = f"{prefix}.post_attention_layernorm"
                output = _norm(g, output, after, text, name="post_norm")
            hidden = g.op("Add", hidden, output, name="residual")
        hidden = _gated_mlp(g, hidden, prefix, text)
    return LayerOutput(
        hidden=hidden,
        present_key=present_key,
        present_value=present_value,
        raw_query=query,
        raw_key=key,
    )


def attention_score(g: GraphBuilder, query: ir.Value, key: ir.Value, text: TextConfig) -> ir.Value:
    """Write the pruning score [B, S]: ``feather_edge.pruning.scores.attention_scores`` as nodes.

    Args:
        g: the graph.
        query: [B, H, S, Dh] of the segment's last layer, before rotary embedding.
        key: [B, Hkv, S, Dh], likewise.
        text: the decoder's sizes.
    """
    groups = text.num_attention_heads // text.num_key_value_heads
    with g.scope("prune"):
        cos, sin = g.inputs["score_cos"], g.inputs["score_sin"]
        query = g.cast(query, "float32", name="query_float")
        key = g.cast(key, "float32", name="key_float")
        last_query = g.dialect.rotary(
            g,
            _last_row(g, query, axis=2, name="last_query"),
            _last_row(g, cos, axis=1, name="last_cos"),
            _last_row(g, sin, axis=1, name="last_sin"),
            name="rotary_query",
        )  # [B, H, 1, Dh]
        shape = g.ints(0, text.num_key_value_heads, groups, 1, text.head_dim)
        grouped = g.op("Reshape", last_query, shape, name="query_groups")  # [B, Hkv, G, 1, Dh]
        rotated = g.dialect.rotary(g, key, cos, sin, name="rotary_key")
        keys = g.op("Unsqueeze", rotated, g.ints(2), name="keys")  # [B, Hkv, 1, S, Dh]
        # Products and a sum, no MatMul: TensorRT may run a float32 MatMul in TF32, which is too
        # coarse for a ranking, and has none for Turing. For one query row it costs the same.
        products = g.op("Mul", grouped, keys, name="products")  # [B, Hkv, G, S, Dh]
        dot = g.op("ReduceSum", products, g.ints(-1), name="dot", keepdims=0)
        scale = g.constant("score_scale", np.array(text.score_scale, np.float32))
        logits = g.op("Mul", dot, scale, name="logits")
        if text.attention_softcap is not None:
            cap = g.constant("score_softcap", np.array(text.attention_softcap, np.float32))
            logits = bounded(g, logits, cap, name="softcap")
        mask = g.op("Unsqueeze", g.inputs["score_mask"], g.ints(1, 2), name="mask")
        masked = g.op("Add", logits, mask, name="masked_logits")
        weights = g.op("Softmax", masked, name="softmax", axis=-1)
        return g.op("ReduceMean", weights, g.ints(1, 2), name="scores", keepdims=0)


def language_head(
    g: GraphBuilder, hidden: ir.Value, head: Callable[[ir.Value], ir.Value], text: TextConfig
) -> ir.Value:
    """Write the final norm and ``logits`` [B, 1, V], in float32, of the last position only.

    ``head`` writes the product with the words of the vocabulary, [B, D] to [B, V].
    """
    last = g.op("Gather", hidden, g.constant("last", np.array(-1)), name="last_position", axis=1)
    normed = _norm(g, last, "text.norm", text, name="norm")  # [B, D]
    wide = g.cast(head(normed), "float32", name="logits_float")  # [B, V]
    if text.logits_softcap is not None:
        cap = g.constant("logits_softcap", np.array(text.logits_softcap, np.float32))
        wide = bounded(g, wide, cap, name="softcap")
    return g.op("Unsqueeze", wide, g.ints(1), name="logits_position")


def _project_qkv(
    g: GraphBuilder, normed: ir.Value, prefix: str, text: TextConfig
) -> tuple[ir.Value, ir.Value, ir.Value]:
    heads, kv_heads, width = text.num_attention_heads, text.num_key_value_heads, text.head_dim
    qkv = linear(
        g,
        normed,
        *(f"{prefix}.{part}_proj" for part in "qkv"),
        in_size=text.hidden_size,
        out_sizes=(heads * width, kv_heads * width, kv_heads * width),
        has_bias=text.attention_bias,
        name="qkv_proj",
    )  # [B, S, (H + 2 Hkv) Dh]
    by_head = g.op("Reshape", qkv, g.ints(0, 0, heads + 2 * kv_heads, width), name="heads")
    heads_first = g.op("Transpose", by_head, name="heads_first", perm=[0, 2, 1, 3])
    query, key, value = g.ops(
        "Split",
        heads_first,
        g.ints(heads, kv_heads, kv_heads),
        name="split",
        outputs=["query", "key", "value"],
        axis=1,
    )
    if text.has_qk_norm:
        query, key = (
            _norm(g, x, f"{prefix}.{part}_norm", text, name=f"{part}_norm", width=width)
            for part, x in (("q", query), ("k", key))
        )
    return query, key, value


def _merge_heads(g: GraphBuilder, attended: ir.Value, text: TextConfig) -> ir.Value:
    rows_first = g.op("Transpose", attended, name="rows_first", perm=[0, 2, 1, 3])
    width = text.num_attention_heads * text.head_dim
    return g.op("Reshape", rows_first, g.ints(0, 0, width), name="merge_heads")  # [B, S, H Dh]


def _gated_mlp(g: GraphBuilder, hidden: ir.Value, prefix: str, text: TextConfig) -> ir.Value:
    with g.scope("mlp"):
        # What Llama calls "post attention" stands before the MLP; Gemma 2 has one in each place.
        before = "pre_feedforward" if text.has_post_norms else "post_attention"
        normed = _norm(g, hidden, f"{prefix}.{before}_layernorm", text, name="norm")
        gate, up = (
            linear(
                g,
                normed,
                f"{prefix}.mlp.{part}",
                in_size=text.hidden_size,
                out_sizes=(text.intermediate_size,),
                has_bias=text.mlp_bias,
                name=part,
            )
            for part in ("gate_proj", "up_proj")
        )  # [B, S, F]
        gated = g.op("Mul", activation(g, gate, text.hidden_act, name="act"), up, name="gated")
        down = linear(
            g,
            gated,
            f"{prefix}.mlp.down_proj",
            in_size=text.intermediate_size,
            out_sizes=(text.hidden_size,),
            has_bias=text.mlp_bias,
            name="down_proj",
        )
        if text.has_post_norms:
            after = f"{prefix}.post_feedforward_layernorm"
            down = _norm(g, down, after, text, name="post_norm")
        return g.op("Add", hidden, down, name="residual")


def _attention_inputs(
    g: GraphBuilder, layer: int, text: TextConfig
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return the mask and the rotary tables of a layer's kind."""
    if text.local is None or not text.is_local(layer):
        return g.inputs["attention_mask"], g.inputs["cos"], g.inputs["sin"]
    kind = "" if text.local.rope_theta is None else "local_"
    return g.inputs["local_attention_mask"], g.inputs[f"{kind}cos"], g.inputs[f"{kind}sin"]


def _norm(
    g: GraphBuilder,
    x: ir.Value,
    module: str,
    text: TextConfig,
    *,
    name: str,
    width: int | None = None,
) -> ir.Value:
    """Write the RMS norm of ``module`` over ``width``, by default the decoder's."""
    shape = (text.hidden_size if width is None else width,)
    offset = 1.0 if text.has_unit_offset else 0.0
    weight = g.weight(f"{module}.weight", shape=shape, offset=offset)
    return g.dialect.rms_norm(g, x, weight, eps=text.rms_norm_eps, name=name)


def _last_row(g: GraphBuilder, x: ir.Value, *, axis: int, name: str) -> ir.Value:
    return g.op("Slice", x, g.ints(-1), g.ints(FROM_LAST), g.ints(axis), name=name)
