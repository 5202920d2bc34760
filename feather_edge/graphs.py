r"""The tensor contract of every graph: what export writes and backends run.

Letters: B batch, S new positions, P cached positions, T = P + S, K kept rows, D width,
Hkv key/value heads, Dh head width, V vocabulary, N images.

``vision_encoder``

=================  ==============  =====  ====================================================
``pixel_values``   [N, C, H, W]    float  preprocessed images
``image_features`` [tokens, D]     float  visual tokens of all images in a row, projected
=================  ==============  =====  ====================================================

``vision_encoder`` of families that keep a picture's resolution, one picture a call; M patches, W
windows, Q patches of a window, Dv the encoder's head width. Windows only where layers have them.

================== ============== ===== =====================================================
``pixel_values``   [M, C T P P]   float patches, block by block; the frame repeated T times
``rotary_cos``     [M, Dv/2]      float tables of a patch's row and column; ``rotary_sin``
``window_index``   [W, Q]         i64   the patch in each slot of each window
``window_mask``    [W, 1, Q, Q]   bool  False for slots of windows that the picture's border cuts
``window_slots``   [M]            i64   the slot of each patch, counted through all windows
``position_index`` [M, 4]         i64   learned positions around a patch, where there are any
``position_weights`` [M, 4]       float of each of the four
``image_features`` [tokens, D]    float visual tokens, row by row
``deepstack_features.N``          float likewise, of an earlier layer; plane N of DeepStack
================== ============== ===== =====================================================

``decoder_i``, one per segment

=========================== ================ ===== ===============================================
``inputs_embeds`` (i = 0)    [B, S, D]        float what enters the first segment
``hidden_states`` (i > 0)    [B, S, D]        float what the segment before gave
``deepstack_embeds.N`` (i=0) [B, S, D]        float added after layer N; 0 but for visual tokens
``cos``, ``sin``             [B, S, Dh/2]     float rotary tables of the original positions
``attention_mask``           [B, 1, S, T]     bool  True where a row may look: causal and padding
``local_cos``, ``local_sin`` [B, S, Dh/2]     float tables of local layers, if they differ +
``local_attention_mask``     [B, 1, S, T]     bool  of local layers: within the window, too +
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

\\+ segments that hold local layers, as Gemma has them. A segment that holds no others has no
``attention_mask``, nor ``cos`` and ``sin`` where nothing reads them.
"""

from __future__ import annotations

from typing import Literal

import msgspec

DType = Literal["float32", "float16", "int64", "bool"]

VISION_ENCODER = "vision_encoder"
DECODER = "decoder_{}"
NEWEST_OPSET = 23
TENSORRT_VERSIONS = {23: ">=10.15", 18: ">=10.3"}
"""TensorRT that reads the operators of an opset's form; see ``feather_edge.export.dialects``."""

DEEPSTACK_FEATURES = "deepstack_features.{}"
DEEPSTACK_EMBEDS = "deepstack_embeds.{}"

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
    """The sizes of a text decoder that its graphs and its host-side code share.

    Attributes:
        local_layers: see a window of positions only, so they have masks of their own.
        has_local_rotary: and rotary tables of their own.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    local_layers: tuple[int, ...] = ()
    has_local_rotary: bool = False


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


def patch_encoder_spec(
    *,
    patch_width: int,
    head_dim: int,
    patches_per_window: int,
    has_positions: bool,
    num_planes: int,
    hidden_size: int,
    dtype: DType,
    opsets: tuple[int, ...],
) -> GraphSpec:
    """Return the contract of a vision encoder that takes the patches of one picture.

    Args:
        patch_width: numbers of a patch.
        head_dim: of the vision encoder's attention.
        patches_per_window: of its attention; 0 for no windows.
        has_positions: learned positions are added to the patches.
        num_planes: of DeepStack.
        hidden_size: of the decoder.
        dtype: of the floats.
        opsets: of the forms.
    """
    patches, window = ("num_patches",), ("num_windows", patches_per_window)
    inputs = [
        TensorSpec(name="pixel_values", dtype=dtype, shape=(*patches, patch_width)),
        TensorSpec(name="rotary_cos", dtype=dtype, shape=(*patches, head_dim // 2)),
        TensorSpec(name="rotary_sin", dtype=dtype, shape=(*patches, head_dim // 2)),
    ]
    if patches_per_window:
        mask = ("num_windows", 1, patches_per_window, patches_per_window)
        inputs += [
            TensorSpec(name="window_index", dtype="int64", shape=window),
            TensorSpec(name="window_mask", dtype="bool", shape=mask),
            TensorSpec(name="window_slots", dtype="int64", shape=patches),
        ]
    if has_positions:
        inputs += [
            TensorSpec(name="position_index", dtype="int64", shape=(*patches, 4)),
            TensorSpec(name="position_weights", dtype=dtype, shape=(*patches, 4)),
        ]
    names = ["image_features", *map(DEEPSTACK_FEATURES.format, range(num_planes))]
    tokens = ("visual_tokens", hidden_size)
    return GraphSpec(
        name=VISION_ENCODER,
        forms=_forms(VISION_ENCODER, opsets),
        inputs=tuple(inputs),
        outputs=tuple(TensorSpec(name=name, dtype=dtype, shape=tokens) for name in names),
    )


def decoder_spec(
    index: int,
    layers: range,
    shape: DecoderShape,
    *,
    is_last: bool,
    dtype: DType,
    opsets: tuple[int, ...],
    num_planes: int = 0,
) -> GraphSpec:
    """Return the contract of segment ``index``, which holds decoder layers ``layers``.

    The first segment takes the ``num_planes`` planes of DeepStack.
    """
    rows = ("batch", "sequence")
    half = shape.head_dim // 2
    entry = "inputs_embeds" if index == 0 else "hidden_states"
    inputs = [
        TensorSpec(name=entry, dtype=dtype, shape=(*rows, shape.hidden_size)),
        *_attention_specs(layers, shape, dtype, is_last=is_last),
        *_cache_specs("past_key_values", layers, shape, "past_sequence", dtype),
    ]
    if index == 0:
        names = map(DEEPSTACK_EMBEDS.format, range(num_planes))
        planes = (*rows, shape.hidden_size)
        inputs += [TensorSpec(name=name, dtype=dtype, shape=planes) for name in names]
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


def _attention_specs(
    layers: range, shape: DecoderShape, dtype: DType, *, is_last: bool
) -> list[TensorSpec]:
    """Return rotary tables and masks of the kinds of layers that a segment holds."""
    num_local = sum(layer in shape.local_layers for layer in layers)
    has_global = num_local < len(layers)
    tables, masks = [], []
    # All segments but the last gather the decoder's own tables.
    if has_global or not shape.has_local_rotary or not is_last:
        tables += ["cos", "sin"]
    if has_global:
        masks.append("attention_mask")
    if num_local:
        tables += ["local_cos", "local_sin"] if shape.has_local_rotary else []
        masks.append("local_attention_mask")
    table = ("batch", "sequence", shape.head_dim // 2)
    mask = ("batch", 1, "sequence", "total_sequence")
    return [
        *(TensorSpec(name=name, dtype=dtype, shape=table) for name in tables),
        *(TensorSpec(name=name, dtype="bool", shape=mask) for name in masks),
    ]


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
