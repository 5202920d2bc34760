"""The vision encoders of Qwen-VL: patches of one picture, rotary embedding, windows, mergers.

Whatever depends on the size of the picture is an input, computed on the host: see the table of
``feather_edge.graphs`` and ``feather_edge.images.native``. A call sees one picture, so attention
over all of it needs no mask. Layers with windows gather their patches into windows of one size and
attend within each; only windows that the picture's border cuts have masked slots.

Letters: V visual tokens, M patches of one, N = V M patches, W windows, P patches of a window (Q
visual tokens), Dv width of the encoder, H heads, Dh head width, D width of the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from feather_edge.export.operators import activation, linear
from feather_edge.graphs import DEEPSTACK_FEATURES

if TYPE_CHECKING:
    import onnx_ir as ir

    from feather_edge.checkpoint.patch_vision_config import PatchVisionConfig
    from feather_edge.export.builder import GraphBuilder

EPSILON = 1e-6
"""Of every norm; no config says so."""
PATCH_KERNEL = "vision.patch_embed.proj.weight"
"""Saved as the kernel of a convolution whose stride is its size: a dense layer."""

_MLP_MODULES = {
    "qwen2_vl_vision": (("fc1",), "fc2"),
    "qwen2_5_vl_vision": (("gate_proj", "up_proj"), "down_proj"),
    "qwen3_vl_vision": (("linear_fc1",), "linear_fc2"),
}
_MERGER_MODULES = {
    "qwen2_vl_vision": ("ln_q", "mlp.0", "mlp.2"),
    "qwen2_5_vl_vision": ("ln_q", "mlp.0", "mlp.2"),
    "qwen3_vl_vision": ("norm", "linear_fc1", "linear_fc2"),
}
_NORM_PARTS = ("weight", "bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scope:
    """Who attends to whom in a layer: tables [B, R, Dh/2], and a mask where B are windows."""

    cos: ir.Value
    sin: ir.Value
    mask: ir.Value | None


def patch_encoder(g: GraphBuilder, vision: PatchVisionConfig) -> dict[str, ir.Value]:
    """Write the encoder and its mergers; returns the graph's outputs, [V, D] each."""
    hidden = linear(
        g,
        g.inputs["pixel_values"],
        "vision.patch_embed.proj",
        in_size=vision.patch_width,
        out_sizes=(vision.hidden_size,),
        has_bias=vision.model_type == "qwen3_vl_vision",
        name="patch_embed",
    )  # [V, M, Dv]
    if vision.num_positions:
        hidden = g.op("Add", hidden, _positions(g, vision), name="position_embedding")
    whole, windows = _scopes(g, vision)
    planes: list[ir.Value] = []
    for layer in range(vision.num_layers):
        scope = whole if layer in vision.full_attention_layers else windows
        with g.scope(f"layers.{layer}"):
            hidden = _attention(g, hidden, layer, vision, scope)
            hidden = _mlp(g, hidden, layer, vision)
        if layer in vision.deepstack_layers:
            number = vision.deepstack_layers.index(layer)
            with g.scope(f"deepstack.{number}"):
                planes.append(_deepstack_merger(g, hidden, number, vision))
    with g.scope("projector"):
        outputs = {"image_features": _merger(g, hidden, vision)}
    return outputs | {DEEPSTACK_FEATURES.format(n): plane for n, plane in enumerate(planes)}


def _positions(g: GraphBuilder, vision: PatchVisionConfig) -> ir.Value:
    """Write the learned position [V, M, Dv] of each patch: four neighbours, weighted."""
    table = g.weight("vision.pos_embed.weight", shape=(vision.num_positions, vision.hidden_size))
    with g.scope("position_embedding"):
        near = g.op("Gather", table, g.inputs["position_index"], name="near", axis=0)
        weights = g.op("Unsqueeze", g.inputs["position_weights"], g.ints(-1), name="weights")
        shares = g.op("Mul", near, weights, name="shares")  # [V, M, 4, Dv]
        return g.op("ReduceSum", shares, g.ints(-2), name="sum", keepdims=0)


def _scopes(g: GraphBuilder, vision: PatchVisionConfig) -> tuple[_Scope, _Scope]:
    """Return what layers that see the whole picture, and those with windows, need."""
    names, half = ("rotary_cos", "rotary_sin"), vision.head_dim // 2
    with g.scope("whole"):
        shape = g.ints(1, -1, half)
        cos, sin = (g.op("Reshape", g.inputs[name], shape, name=name) for name in names)
    whole = _Scope(cos=cos, sin=sin, mask=None)
    if not vision.window_size:
        return whole, whole
    with g.scope("windows"):
        index, shape = g.inputs["window_index"], g.ints(0, -1, half)
        gathered = [g.op("Gather", g.inputs[n], index, name=f"{n}/gather") for n in names]
        cos, sin = (
            g.op("Reshape", table, shape, name=name)
            for table, name in zip(gathered, names, strict=True)
        )  # [W, P, Dh/2]
    return whole, _Scope(cos=cos, sin=sin, mask=g.inputs["window_mask"])


def _attention(
    g: GraphBuilder, hidden: ir.Value, layer: int, vision: PatchVisionConfig, scope: _Scope
) -> ir.Value:
    prefix, width = f"vision.blocks.{layer}", vision.hidden_size
    heads, head_dim = vision.num_attention_heads, vision.head_dim
    with g.scope("self_attn"):
        normed = _norm(g, hidden, f"{prefix}.norm1", vision)
        qkv = linear(
            g,
            normed,
            f"{prefix}.attn.qkv",
            in_size=width,
            out_sizes=(3 * width,),
            has_bias=True,
            name="qkv_proj",
        )  # [V, M, 3 Dv]
        batch = 1
        if scope.mask is not None:
            batch = 0  # as many as there are windows
            qkv = g.op("Gather", qkv, g.inputs["window_index"], name="windows")  # [W, Q, M, 3 Dv]
        by_head = g.op("Reshape", qkv, g.ints(batch, -1, 3 * heads, head_dim), name="heads")
        heads_first = g.op("Transpose", by_head, name="heads_first", perm=[0, 2, 1, 3])
        query, key, value = g.ops(
            "Split",
            heads_first,
            g.ints(heads, heads, heads),
            name="split",
            outputs=["query", "key", "value"],
            axis=1,
        )
        attended = g.dialect.attention(
            g,
            g.dialect.rotary(g, query, scope.cos, scope.sin, name="rotary_query"),
            g.dialect.rotary(g, key, scope.cos, scope.sin, name="rotary_key"),
            value,
            scope.mask,
            heads=(heads, heads),
            head_dim=head_dim,
            name="attention",
        )  # [1, H, N, Dh] or [W, H, P, Dh]
        rows_first = g.op("Transpose", attended, name="rows_first", perm=[0, 2, 1, 3])
        shape = g.ints(-1, vision.merge_size**2, width)
        merged = g.op("Reshape", rows_first, shape, name="merge_heads")
        if scope.mask is not None:
            merged = g.op("Gather", merged, g.inputs["window_slots"], name="tokens")  # [V, M, Dv]
        output = linear(
            g,
            merged,
            f"{prefix}.attn.proj",
            in_size=width,
            out_sizes=(width,),
            has_bias=True,
            name="out_proj",
        )
        return g.op("Add", hidden, output, name="residual")


def _mlp(g: GraphBuilder, hidden: ir.Value, layer: int, vision: PatchVisionConfig) -> ir.Value:
    prefix = f"vision.blocks.{layer}"
    width, wide = vision.hidden_size, vision.intermediate_size
    with g.scope("mlp"):
        normed = _norm(g, hidden, f"{prefix}.norm2", vision)
        entries, exit_module = _MLP_MODULES[vision.model_type]
        first, *gated = (
            linear(
                g,
                normed,
                f"{prefix}.mlp.{entry}",
                in_size=width,
                out_sizes=(wide,),
                has_bias=True,
                name=entry,
            )
            for entry in entries
        )
        acted = activation(g, first, vision.hidden_act, name="act")
        for up in gated:
            acted = g.op("Mul", acted, up, name="gated")
        narrow = linear(
            g,
            acted,
            f"{prefix}.mlp.{exit_module}",
            in_size=wide,
            out_sizes=(width,),
            has_bias=True,
            name=exit_module,
        )
        return g.op("Add", hidden, narrow, name="residual")


def _merger(g: GraphBuilder, hidden: ir.Value, vision: PatchVisionConfig) -> ir.Value:
    """Join the patches of each visual token, and map them into the decoder's width."""
    norm, first, second = _MERGER_MODULES[vision.model_type]
    tokens = _joined(g, _norm(g, hidden, f"projector.{norm}", vision), vision)
    return _merger_mlp(g, tokens, f"projector.{first}", f"projector.{second}", vision)


def _deepstack_merger(
    g: GraphBuilder, hidden: ir.Value, number: int, vision: PatchVisionConfig
) -> ir.Value:
    """Join the patches of each visual token, then normalise: the other way round."""
    module = f"projector.deepstack.{number}"
    tokens = _joined(g, hidden, vision)
    joined = vision.hidden_size * vision.merge_size**2
    weight, bias = (g.weight(f"{module}.norm.{part}", shape=(joined,)) for part in _NORM_PARTS)
    normed = g.op(
        "LayerNormalization", tokens, weight, bias, name="norm", axis=-1, epsilon=EPSILON
    )
    return _merger_mlp(g, normed, f"{module}.linear_fc1", f"{module}.linear_fc2", vision)


def _joined(g: GraphBuilder, rows: ir.Value, vision: PatchVisionConfig) -> ir.Value:
    joined = vision.hidden_size * vision.merge_size**2
    return g.op("Reshape", rows, g.ints(0, joined), name="join")  # [V, M Dv]


def _merger_mlp(
    g: GraphBuilder, tokens: ir.Value, first: str, second: str, vision: PatchVisionConfig
) -> ir.Value:
    joined = vision.hidden_size * vision.merge_size**2
    wide = linear(
        g, tokens, first, in_size=joined, out_sizes=(joined,), has_bias=True, name="linear_1"
    )
    return linear(
        g,
        activation(g, wide, "gelu", name="act"),
        second,
        in_size=joined,
        out_sizes=(vision.out_size,),
        has_bias=True,
        name="linear_2",
    )


def _norm(g: GraphBuilder, x: ir.Value, module: str, vision: PatchVisionConfig) -> ir.Value:
    """Write the norm called ``module``: Qwen2.5-VL has RMS norms, the others LayerNorm."""
    name, shape = module.rpartition(".")[2], (vision.hidden_size,)
    if vision.model_type == "qwen2_5_vl_vision":
        weight = g.weight(f"{module}.weight", shape=shape)
        return g.dialect.rms_norm(g, x, weight, eps=EPSILON, name=name)
    weight, bias = (g.weight(f"{module}.{part}", shape=shape) for part in _NORM_PARTS)
    return g.op("LayerNormalization", x, weight, bias, name=name, axis=-1, epsilon=EPSILON)
