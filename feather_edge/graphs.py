r"""The tensor contract of every graph: what export writes and backends run.

Letters: B batch, S new positions, P cached positions, T = P + S, K kept rows, D width,
Hkv key/value heads, Dh head width, V vocabulary, N images.

``vision_encoder``

=================  ==============  =====  ====================================================
``pixel_values``   [N, C, H, W]    float  preprocessed images
``image_features`` [tokens, D]     float  visual tokens of all images in a row, projected
=================  ==============  =====  ====================================================

``decoder_i``, one per segment

=========================== ================ ===== ===============================================
``inputs_embeds`` (i = 0)    [B, S, D]        float what enters the first segment
``hidden_states`` (i > 0)    [B, S, D]        float what the segment before gave
``cos``, ``sin``             [B, S, Dh/2]     float rotary tables of the original positions
``attention_mask``           [B, 1, S, T]     bool  True where a row may look: causal and padding
``past_key_values.N.key``    [B, Hkv, P, Dh]  float N counts layers of the whole model; ``.value``
``prune_priority`` *         [B, S]           f32   added to the score; text ``ALWAYS``
``score_cos``, ``score_sin``*[B, S, Dh/2]     f32   rotary tables of the score; identity: RoPE-free
``score_mask`` *             [B, S]           f32   additive, which rows the score's softmax sees
``num_kept`` *               [1]              i64   K, the rows that leave the segment
``present.N.key``            [B, Hkv, T, Dh]  float grown cache; ``.value``
``kept_hidden_states`` *     [B, K, D]        float rows that leave the segment
``kept_cos``, ``kept_sin`` * [B, K, Dh/2]     float their rotary tables
``kept_indices`` *           [B, K]           i64   ascending rows of S
``scores`` *                 [B, S]           f32   see ``feather_edge.pruning.scores``
``logits`` (last segment)    [B, 1, V]        f32   of the last position
=========================== ================ ===== ===============================================

\\* all segments but the last. The score's query is row S - 1, so batches are padded on the left.
"""

from __future__ import annotations

from typing import Literal

import msgspec

DType = Literal["float32", "float16", "bfloat16", "int64", "bool"]
"""Names of numpy types; ``bfloat16`` is one once ml_dtypes is imported."""

VISION_ENCODER = "vision_encoder"
DECODER = "decoder_{}"
NEWEST_OPSET = 23
TENSORRT_VERSIONS = {23: ">=10.15", 18: ">=10.3"}
"""TensorRT that reads the operators of an opset's form; see ``feather_edge.export.dialects``."""

EMBED_TOKENS_FILE = "onnx/embed_tokens.safetensors"
EMBED_TOKENS_TENSOR = "embed_tokens.weight"


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A named input or output; a dimension is a size, or the name of a size known at run time."""

    name: str
    dtype: DType
    shape: tuple[int | str, ...]


class GraphForm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of a graph: the same contract and weights in the operators of an opset.

    Attributes:
        opset: of the standard operators.
        file: path within the bundle.
        tensorrt: the versions of TensorRT that this form is for.
    """

    opset: int
    file: str
    tensorrt: str


class GraphSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One graph of a bundle."""

    name: str
    forms: tuple[GraphForm, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def file(self) -> str:
        """Path of the newest form, which ONNX Runtime runs."""
        return max(self.forms, key=lambda form: form.opset).file

    @property
    def weights_file(self) -> str:
        """Path of the weights, which all forms share."""
        return f"onnx/{self.name}.onnx_data"


class DecoderShape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sizes of a text decoder that its graphs and its host-side code share."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int


def vision_encoder_spec(
    *,
    num_channels: int,
    image_size: tuple[int, int],
    hidden_size: int,
    dtype: DType,
    opsets: tuple[int, ...],
) -> GraphSpec:
    """Return the contract of the vision encoder for images of ``image_size`` (height, width)."""
    pixels = ("num_images", num_channels, *image_size)
    return GraphSpec(
        name=VISION_ENCODER,
        forms=_forms(VISION_ENCODER, opsets),
        inputs=(TensorSpec(name="pixel_values", dtype=dtype, shape=pixels),),
        outputs=(
            TensorSpec(name="image_features", dtype=dtype, shape=("visual_tokens", hidden_size)),
        ),
    )


def decoder_spec(
    index: int,
    layers: range,
    shape: DecoderShape,
    *,
    is_last: bool,
    dtype: DType,
    opsets: tuple[int, ...],
) -> GraphSpec:
    """Return the contract of segment ``index``, which holds decoder layers ``layers``."""
    rows = ("batch", "sequence")
    half = shape.head_dim // 2
    entry = "inputs_embeds" if index == 0 else "hidden_states"
    inputs = [
        TensorSpec(name=entry, dtype=dtype, shape=(*rows, shape.hidden_size)),
        TensorSpec(name="cos", dtype=dtype, shape=(*rows, half)),
        TensorSpec(name="sin", dtype=dtype, shape=(*rows, half)),
        TensorSpec(
            name="attention_mask", dtype="bool", shape=("batch", 1, "sequence", "total_sequence")
        ),
        *_cache_specs("past_key_values", layers, shape, "past_sequence", dtype),
    ]
    outputs = list(_cache_specs("present", layers, shape, "total_sequence", dtype))
    if is_last:
        logits = ("batch", 1, shape.vocab_size)
        outputs.append(TensorSpec(name="logits", dtype="float32", shape=logits))
    else:
        inputs += [
            TensorSpec(name="prune_priority", dtype="float32", shape=rows),
            TensorSpec(name="score_cos", dtype="float32", shape=(*rows, half)),
            TensorSpec(name="score_sin", dtype="float32", shape=(*rows, half)),
            TensorSpec(name="score_mask", dtype="float32", shape=rows),
            TensorSpec(name="num_kept", dtype="int64", shape=(1,)),
        ]
        kept = ("batch", "kept")
        outputs += [
            TensorSpec(name="kept_hidden_states", dtype=dtype, shape=(*kept, shape.hidden_size)),
            TensorSpec(name="kept_cos", dtype=dtype, shape=(*kept, half)),
            TensorSpec(name="kept_sin", dtype=dtype, shape=(*kept, half)),
            TensorSpec(name="kept_indices", dtype="int64", shape=kept),
            TensorSpec(name="scores", dtype="float32", shape=rows),
        ]
    name = DECODER.format(index)
    return GraphSpec(
        name=name, forms=_forms(name, opsets), inputs=tuple(inputs), outputs=tuple(outputs)
    )


def cache_names(prefix: str, layers: range) -> list[str]:
    """Return the cache tensor names of ``layers``: key and value of each, in order."""
    return [f"{prefix}.{layer}.{part}" for layer in layers for part in ("key", "value")]


def _forms(name: str, opsets: tuple[int, ...]) -> tuple[GraphForm, ...]:
    return tuple(
        GraphForm(
            opset=opset,
            file=f"onnx/{name}{'' if opset == NEWEST_OPSET else f'.opset{opset}'}.onnx",
            tensorrt=TENSORRT_VERSIONS[opset],
        )
        for opset in opsets
    )


def _cache_specs(
    prefix: str, layers: range, shape: DecoderShape, length: str, dtype: DType
) -> list[TensorSpec]:
    dims = ("batch", shape.num_key_value_heads, length, shape.head_dim)
    return [TensorSpec(name=n, dtype=dtype, shape=dims) for n in cache_names(prefix, layers)]
