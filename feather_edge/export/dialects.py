r"""Dialects of ONNX: the operators that an opset has, and what stands in for those it lacks.

====================  ==============================  =========================================
\                     opset 23                        opset 18
====================  ==============================  =========================================
for                   TensorRT 10.15 and newer,       TensorRT 10.3 (JetPack 6) and 10.13
                      TensorRT-RTX, ONNX Runtime      (JetPack 7.0), which read opset 20 at most
attention             ``Attention``                   MatMul, Softmax, MatMul
norm                  ``RMSNormalization``            Mul, ReduceMean, Sqrt, Div
rotary embedding      ``RotaryEmbedding``             Split, Mul, Sub, Add, Concat
Gelu                  ``Gelu``                        Erf or Tanh
KV cache              Concat: it grows                Concat
====================  ==============================  =========================================

Opset 24 is opset 23 with a KV cache in place, ``TensorScatter`` and Slice: for TensorRT 10.15 and
newer and TensorRT-RTX, which write the new rows into the cache that they were given.

Blocks are written once and ask ``g.dialect`` for these. Weights and names are the same, so all
forms of a graph share one weight file. Shapes as in ``feather_edge.graphs``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np

from feather_edge.graphs import WRITE_INDICES

if TYPE_CHECKING:
    import onnx_ir as ir

    from feather_edge.export.builder import GraphBuilder


class Dialect(Protocol):
    """How one opset says what differs between opsets."""

    opset: int
    ir_version: int

    def rms_norm(
        self, g: GraphBuilder, x: ir.Value, weight: ir.Value, *, eps: float, name: str
    ) -> ir.Value:
        """Root-mean-square normalisation over the last axis, accumulated in float32."""
        ...

    def rotary(
        self, g: GraphBuilder, x: ir.Value, cos: ir.Value, sin: ir.Value, *, name: str
    ) -> ir.Value:
        """Rotary embedding of ``x`` [B, heads, S, Dh], halves paired, by tables [B, S, Dh/2]."""
        ...

    def attention(
        self,
        g: GraphBuilder,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        mask: ir.Value | None,
        *,
        heads: tuple[int, int],
        head_dim: int,
        name: str,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> ir.Value:
        """Attention of [B, H, S, Dh] to [B, Hkv, T, Dh], ``heads`` being (H, Hkv).

        ``scale`` multiplies the products of query and key, None being 1 / sqrt(Dh); ``softcap``
        then bounds them, before the mask.

        The mask [B, 1, S, T] is explicit: TensorRT refuses ``is_causal`` beside a mask, and a
        causal flag alone would need every runtime to agree on the offset of cached positions.
        Without one every row sees every other.
        """
        ...

    def packed_attention(
        self,
        g: GraphBuilder,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        *,
        num_heads: int,
        head_dim: int,
        name: str,
    ) -> ir.Value:
        """Attention of every row to every row, heads packed: [B, S, H * Dh] each."""
        ...

    def gelu(self, g: GraphBuilder, x: ir.Value, *, tanh: bool, name: str) -> ir.Value:
        """Gelu, exact or in its tanh approximation."""
        ...

    def update_cache(
        self, g: GraphBuilder, past: ir.Value, new: ir.Value, *, name: str
    ) -> tuple[ir.Value, ir.Value]:
        """Add rows [B, Hkv, S, Dh] to a cache: the cache after, and what attention sees of it."""
        ...


class _GrownCache:
    """Caches as long as what they hold."""

    def update_cache(
        self, g: GraphBuilder, past: ir.Value, new: ir.Value, *, name: str
    ) -> tuple[ir.Value, ir.Value]:
        """See ``Dialect``."""
        present = g.op("Concat", past, new, name=name, axis=2)  # [B, Hkv, T, Dh]
        return present, present


class Opset23(_GrownCache):
    """The operators as they are."""

    opset = 23
    ir_version = 11

    def rms_norm(
        self, g: GraphBuilder, x: ir.Value, weight: ir.Value, *, eps: float, name: str
    ) -> ir.Value:
        """See ``Dialect``."""
        return g.op("RMSNormalization", x, weight, name=name, axis=-1, epsilon=eps, stash_type=1)

    def rotary(
        self, g: GraphBuilder, x: ir.Value, cos: ir.Value, sin: ir.Value, *, name: str
    ) -> ir.Value:
        """See ``Dialect``."""
        return g.op("RotaryEmbedding", x, cos, sin, name=name)

    def attention(
        self,
        g: GraphBuilder,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        mask: ir.Value | None,
        *,
        heads: tuple[int, int],
        head_dim: int,
        name: str,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> ir.Value:
        """See ``Dialect``.

        With a softcap in single operators: as opset 23 words it the operator bounds what is
        masked, too, so masked rows would keep a little weight, and runtimes differ about it.
        """
        if softcap is not None:
            return _DECOMPOSED.attention(
                g,
                query,
                key,
                value,
                mask,
                heads=heads,
                head_dim=head_dim,
                name=name,
                scale=scale,
                softcap=softcap,
            )
        attributes = {} if scale is None else {"scale": scale}
        masks = [] if mask is None else [mask]
        return g.op("Attention", query, key, value, *masks, name=name, **attributes)

    def packed_attention(
        self,
        g: GraphBuilder,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        *,
        num_heads: int,
        head_dim: int,  # noqa: ARG002 - the operator reads it from the shapes
        name: str,
    ) -> ir.Value:
        """See ``Dialect``."""
        heads = {"q_num_heads": num_heads, "kv_num_heads": num_heads}
        return g.op("Attention", query, key, value, name=name, **heads)

    def gelu(self, g: GraphBuilder, x: ir.Value, *, tanh: bool, name: str) -> ir.Value:
        """See ``Dialect``."""
        return g.op("Gelu", x, name=name, approximate="tanh" if tanh else "none")


class Opset24(Opset23):
    """Opset 23 with caches in place."""

    opset = 24

    def update_cache(
        self, g: GraphBuilder, past: ir.Value, new: ir.Value, *, name: str
    ) -> tuple[ir.Value, ir.Value]:
        """See ``Dialect``. The mask's width says how many slots are seen.

        TensorRT wants a static capacity, and without the Slice a prefill would attend to all of
        it. ``Attention`` has an input for this, which TensorRT's parser drops without an error.
        """
        present = g.op("TensorScatter", past, new, g.inputs[WRITE_INDICES], name=name, axis=2)
        masks = ("attention_mask", "local_attention_mask")  # a segment has one of them, or both
        mask = next(g.inputs[name] for name in masks if name in g.inputs)
        num_seen = g.once("num_seen", lambda: g.op("Shape", mask, name="num_seen", start=3, end=4))
        bounds = (g.ints(0), num_seen, g.ints(2))
        return present, g.op("Slice", present, *bounds, name=f"{name}_seen")  # [B, Hkv, T, Dh]


class Opset18(_GrownCache):
    """The same in operators that TensorRT's parser has known since 10.0."""

    opset = 18
    ir_version = 10

    def rms_norm(
        self, g: GraphBuilder, x: ir.Value, weight: ir.Value, *, eps: float, name: str
    ) -> ir.Value:
        """See ``Dialect``."""
        with g.scope(name):
            wide = g.cast(x, "float32", name="float")
            square = g.op("Mul", wide, wide, name="square")
            mean = g.op("ReduceMean", square, g.ints(-1), name="mean", keepdims=1)
            epsilon = g.constant(f"epsilon_{eps:g}", np.array(eps, np.float32))
            root = g.op("Sqrt", g.op("Add", mean, epsilon, name="add_epsilon"), name="root")
            normed = g.cast(g.op("Div", wide, root, name="divide"), g.dtype, name="normed")
            return g.op("Mul", normed, weight, name="scale")

    def rotary(
        self, g: GraphBuilder, x: ir.Value, cos: ir.Value, sin: ir.Value, *, name: str
    ) -> ir.Value:
        """See ``Dialect``."""
        cos, sin = (g.unsqueeze_once(table, 1) for table in (cos, sin))  # [B, 1, S, Dh/2]
        with g.scope(name):
            outputs = ["low", "high"]
            low, high = g.ops("Split", x, name="halves", outputs=outputs, axis=-1, num_outputs=2)
            low_cos, low_sin, high_cos, high_sin = (
                g.op("Mul", half, table, name=f"{half_name}_{table_name}")
                for half_name, half in (("low", low), ("high", high))
                for table_name, table in (("cos", cos), ("sin", sin))
            )
            first = g.op("Sub", low_cos, high_sin, name="first")
            second = g.op("Add", high_cos, low_sin, name="second")
            return g.op("Concat", first, second, name="join", axis=-1)

    def attention(
        self,
        g: GraphBuilder,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        mask: ir.Value | None,
        *,
        heads: tuple[int, int],
        head_dim: int,
        name: str,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> ir.Value:
        """See ``Dialect``. Groups get an axis of their own, so keys are never repeated."""
        num_heads, num_kv_heads = heads
        groups = num_heads // num_kv_heads
        with g.scope(name):
            shape = g.ints(0, num_kv_heads, groups, -1, head_dim)
            grouped = g.op("Reshape", query, shape, name="groups")  # [B, Hkv, H/Hkv, S, Dh]
            keys = g.op("Unsqueeze", key, g.ints(2), name="keys")  # [B, Hkv, 1, T, Dh]
            values = g.op("Unsqueeze", value, g.ints(2), name="values")
            visible = None if mask is None else g.unsqueeze_once(mask, 1)  # [B, 1, 1, S, T]
            columns = g.op("Transpose", keys, name="key_columns", perm=[0, 1, 2, 4, 3])
            scale = head_dim**-0.5 if scale is None else scale
            attended = self._attend(
                g, grouped, columns, values, visible, scale=scale, softcap=softcap
            )
            return g.op("Reshape", attended, g.ints(0, num_heads, -1, head_dim), name="heads")

    def packed_attention(
        self,
        g: GraphBuilder,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        *,
        num_heads: int,
        head_dim: int,
        name: str,
    ) -> ir.Value:
        """See ``Dialect``."""
        with g.scope(name):
            shape, unpacked = g.ints(0, 0, num_heads, head_dim), []
            for part, x in (("query", query), ("key", key), ("value", value)):
                by_head = g.op("Reshape", x, shape, name=f"{part}_heads")
                unpacked.append(g.op("Transpose", by_head, name=part, perm=[0, 2, 1, 3]))
            queries, keys, values = unpacked
            columns = g.op("Transpose", keys, name="key_columns", perm=[0, 1, 3, 2])
            attended = self._attend(g, queries, columns, values, None, scale=head_dim**-0.5)
            rows_first = g.op("Transpose", attended, name="rows_first", perm=[0, 2, 1, 3])
            return g.op("Reshape", rows_first, g.ints(0, 0, num_heads * head_dim), name="pack")

    def _attend(
        self,
        g: GraphBuilder,
        query: ir.Value,
        columns: ir.Value,
        value: ir.Value,
        visible: ir.Value | None,
        *,
        scale: float,
        softcap: float | None = None,
    ) -> ir.Value:
        scaled = g.op("Mul", query, g.scalar("attention_scale", scale), name="scaled")
        logits = g.op("MatMul", scaled, columns, name="logits")
        if softcap is not None:
            logits = bounded(g, logits, g.scalar("attention_softcap", softcap), name="softcap")
        if visible is not None:
            lowest = g.scalar("masked_logit", float(np.finfo(np.dtype(g.dtype)).min) / 2)
            logits = g.op("Where", visible, logits, lowest, name="mask")
        weights = g.op("Softmax", logits, name="softmax", axis=-1)
        return g.op("MatMul", weights, value, name="attended")

    def gelu(self, g: GraphBuilder, x: ir.Value, *, tanh: bool, name: str) -> ir.Value:
        """See ``Dialect``."""
        with g.scope(name):
            if tanh:
                cube = g.op("Mul", g.op("Mul", x, x, name="square"), x, name="cube")
                bent = g.op("Mul", cube, g.scalar("gelu_cubic", 0.044715), name="bent")
                slope = g.scalar("gelu_tanh_slope", math.sqrt(2 / math.pi))
                inner = g.op("Mul", g.op("Add", x, bent, name="sum"), slope, name="inner")
                curve = g.op("Tanh", inner, name="tanh")
            else:
                inner = g.op("Mul", x, g.scalar("gelu_erf_slope", math.sqrt(0.5)), name="inner")
                curve = g.op("Erf", inner, name="erf")
            lifted = g.op("Add", curve, g.scalar("one", 1.0), name="lifted")
            half = g.op("Mul", x, g.scalar("half", 0.5), name="half")
            return g.op("Mul", half, lifted, name="gelu")


def bounded(g: GraphBuilder, x: ir.Value, cap: ir.Value, *, name: str) -> ir.Value:
    """Write cap * tanh(x / cap), which bounds ``x`` smoothly."""
    with g.scope(name):
        curve = g.op("Tanh", g.op("Div", x, cap, name="divide"), name="tanh")
        return g.op("Mul", curve, cap, name="bounded")


_DECOMPOSED = Opset18()

DIALECTS: dict[int, Dialect] = {24: Opset24(), 23: Opset23(), 18: Opset18()}
