r"""The tensor contract of every graph: what export writes and backends run.

Letters: B batch, S new positions, P cached positions, T = P + S, K kept rows, D width,
Hkv key/value heads, Dh head width, V vocabulary, N images.

``vision_encoder``

=================  ==============  =====  ====================================================
``pixel_values``   [N, C, H, W]    float  preprocessed images
``image_features`` [tokens, D]     float  visual tokens of all images in a row, projected
=================  ==============  =====  ====================================================

``vision_encoder`` of families that keep a picture's resolution, one picture a call; M patches of a
visual token, W windows, Q visual tokens of a window, Dv the encoder's head width.

========================== ===================== ===== =======================================
``pixel_values``           [tokens, M, C T P P]  float patches; the frame is repeated T times
``rotary_cos``             [tokens, M, Dv/2]     float of a patch's place; ``rotary_sin``
``window_index`` *         [W, Q]                i64   the visual token in each slot of a window
``window_mask`` *          [W, 1, Q M, Q M]      bool  False for slots that hold no token
``window_slots`` *         [tokens]              i64   the slot of each, through all windows
``position_index`` *       [tokens, M, 4]        i64   learned positions around a patch
``position_weights`` *     [tokens, M, 4]        float of each of the four
``image_features``         [tokens, D]           float visual tokens, row by row
``deepstack_features.N`` * [tokens, D]           float of an earlier layer; plane N of DeepStack
========================== ===================== ===== =======================================

\\* where the encoder has such.

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

The form of opset 24 keeps its caches in place: C is their capacity, P of their slots are filled,
and attention sees the first T of them, P + S <= T <= C. Decode steps that look at equally many
slots have equal shapes. What differs from the table above:

=========================== ================ ===== ===============================================
``attention_mask``           [B, 1, S, T]     bool  False for slots that hold nothing yet, too
``past_key_values.N.key``    [B, Hkv, C, Dh]  float finite everywhere; ``.value``
``write_indices``            [B]              i64   P: the slot of the first new row
``present.N.key``            [B, Hkv, C, Dh]  float the same memory, S rows later; ``.value``
=========================== ================ ===== ===============================================
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

DType = Literal["float32", "float16", "bfloat16", "int64", "bool"]
"""Names of numpy types; ``bfloat16`` is one once ml_dtypes is imported."""

VISION_ENCODER = "vision_encoder"
DECODER = "decoder_{}"
OPSETS = (24, 23, 18)
"""Of the forms that a graph may have; see ``feather_edge.export.dialects``."""
IN_PLACE_OPSET = 24
"""Of the form whose caches are updated in place."""
TENSORRT_VERSIONS = {24: ">=10.15", 23: ">=10.15", 18: ">=10.3"}
"""TensorRT that reads the operators of an opset's form."""

WRITE_INDICES = "write_indices"
CACHE_CAPACITY = "cache_capacity"
"""The input, and the name of the dimension, that only caches in place have."""

DEEPSTACK_FEATURES = "deepstack_features.{}"
DEEPSTACK_EMBEDS = "deepstack_embeds.{}"

MAX_LAYERS, MAX_SIZE = 2**10, 2**22
"""Beyond any decoder there is: a manifest with more is damaged, or means harm."""

EMBED_TOKENS_FILE = "onnx/embed_tokens.safetensors"
EMBED_TOKENS_TENSOR = "embed_tokens.weight"
EMBED_TOKENS_SCALES = "embed_tokens.scales"


MAX_FIXED_SIZE = 2**28
"""Product of a tensor's sizes that a contract fixes; tiles of pictures stay far below."""


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A named input or output; a dimension is a size, or the name of a size known at run time."""

    name: str
    dtype: DType
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        sizes = [size for size in self.shape if isinstance(size, int)]
        if min(sizes, default=1) < 1 or math.prod(sizes) > MAX_FIXED_SIZE:
            raise ValueError(
                f"{self.name} has shape {list(self.shape)}; sizes are at least 1, and their "
                f"product at most {MAX_FIXED_SIZE}"
            )


_Contract = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]


class GraphForm(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """One file of a graph: the same weights in the operators of an opset.

    Attributes:
        opset: of the standard operators.
        file: path within the bundle.
        tensorrt: the versions of TensorRT that this form is for; ``none`` of int8-dynamic.
        inputs: of its contract, where that is not the graph's; ``outputs`` likewise.
    """

    opset: int
    file: str
    tensorrt: str
    inputs: tuple[TensorSpec, ...] | None = None
    outputs: tuple[TensorSpec, ...] | None = None


class GraphSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One graph of a bundle; the contract is that of its main form."""

    name: str
    forms: tuple[GraphForm, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def main_form(self) -> GraphForm:
        """The form that ONNX Runtime runs: the newest with caches that grow, if there is one."""
        main = _main_opset([form.opset for form in self.forms])
        return next(form for form in self.forms if form.opset == main)

    @property
    def file(self) -> str:
        """Path of the main form."""
        return self.main_form.file

    def of(self, form: GraphForm) -> GraphSpec:
        """Return the graph with the contract of one of its forms."""
        if form.inputs is None or form.outputs is None:
            return self
        return msgspec.structs.replace(self, inputs=form.inputs, outputs=form.outputs)

    @property
    def caches(self) -> dict[str, str]:
        """Which input holds the cache that becomes an output: ``{present: past}``."""
        prefix = "present."
        names = [t.name for t in self.outputs if t.name.startswith(prefix)]
        return {name: f"past_key_values.{name.removeprefix(prefix)}" for name in names}

    @property
    def caches_in_place(self) -> dict[str, str]:
        """The caches, if they have a capacity and are updated in place; else nothing."""
        is_in_place = any(tensor.name == WRITE_INDICES for tensor in self.inputs)
        return self.caches if is_in_place else {}

    def with_caches_in_place(self) -> GraphSpec:
        """Return the contract of a segment whose grown caches are updated in place instead."""
        caches = {*self.caches, *self.caches.values()}

        def changed(tensor: TensorSpec) -> TensorSpec:
            batch, heads, _, width = tensor.shape
            shape = (batch, heads, CACHE_CAPACITY, width)
            return msgspec.structs.replace(tensor, shape=shape)

        start = TensorSpec(name=WRITE_INDICES, dtype="int64", shape=("batch",))
        inputs, outputs = (
            [changed(tensor) if tensor.name in caches else tensor for tensor in tensors]
            for tensors in (self.inputs, self.outputs)
        )
        return msgspec.structs.replace(self, inputs=(*inputs, start), outputs=tuple(outputs))

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

    def __post_init__(self) -> None:
        for name in self.__struct_fields__[: self.__struct_fields__.index("local_layers")]:
            most = MAX_LAYERS if name == "num_layers" else MAX_SIZE
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 to {most}")


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
    inputs = (TensorSpec(name="pixel_values", dtype=dtype, shape=pixels),)
    outputs = (
        TensorSpec(name="image_features", dtype=dtype, shape=("visual_tokens", hidden_size)),
    )
    return _graph_spec(VISION_ENCODER, dict.fromkeys(opsets, (inputs, outputs)))


def patch_encoder_spec(
    *,
    patches_per_token: int,
    patch_width: int,
    head_dim: int,
    tokens_per_window: int,
    has_positions: bool,
    num_planes: int,
    hidden_size: int,
    dtype: DType,
    opsets: tuple[int, ...],
) -> GraphSpec:
    """Return the contract of a vision encoder that takes the patches of one picture.

    Args:
        patches_per_token: that are merged into a visual token.
        patch_width: numbers of a patch.
        head_dim: of the vision encoder's attention.
        tokens_per_window: visual tokens of a window of its attention; 0 for no windows.
        has_positions: learned positions are added to the patches.
        num_planes: of DeepStack.
        hidden_size: of the decoder.
        dtype: of the floats.
        opsets: of the forms.
    """
    patches = ("visual_tokens", patches_per_token)
    inputs = [
        TensorSpec(name="pixel_values", dtype=dtype, shape=(*patches, patch_width)),
        TensorSpec(name="rotary_cos", dtype=dtype, shape=(*patches, head_dim // 2)),
        TensorSpec(name="rotary_sin", dtype=dtype, shape=(*patches, head_dim // 2)),
    ]
    if tokens_per_window:
        per_window = tokens_per_window * patches_per_token
        mask = ("num_windows", 1, per_window, per_window)
        inputs += [
            TensorSpec(
                name="window_index", dtype="int64", shape=("num_windows", tokens_per_window)
            ),
            TensorSpec(name="window_mask", dtype="bool", shape=mask),
            TensorSpec(name="window_slots", dtype="int64", shape=("visual_tokens",)),
        ]
    if has_positions:
        inputs += [
            TensorSpec(name="position_index", dtype="int64", shape=(*patches, 4)),
            TensorSpec(name="position_weights", dtype=dtype, shape=(*patches, 4)),
        ]
    names = ["image_features", *map(DEEPSTACK_FEATURES.format, range(num_planes))]
    tokens = ("visual_tokens", hidden_size)
    outputs = tuple(TensorSpec(name=name, dtype=dtype, shape=tokens) for name in names)
    return _graph_spec(VISION_ENCODER, dict.fromkeys(opsets, (tuple(inputs), outputs)))


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
    names = map(DEEPSTACK_EMBEDS.format, range(num_planes if index == 0 else 0))
    tokens = ("batch", "sequence", shape.hidden_size)
    planes = [TensorSpec(name=name, dtype=dtype, shape=tokens) for name in names]
    contracts = {}
    for opset in opsets:
        in_place = opset == IN_PLACE_OPSET
        lengths = (CACHE_CAPACITY,) * 2 if in_place else ("past_sequence", "total_sequence")
        past, present = (
            _cache_specs(prefix, layers, shape, length, dtype)
            for prefix, length in zip(("past_key_values", "present"), lengths, strict=True)
        )
        if in_place:
            past.append(TensorSpec(name=WRITE_INDICES, dtype="int64", shape=("batch",)))
        inputs, outputs = _row_specs(index, layers, shape, is_last=is_last, dtype=dtype)
        prune_inputs = () if is_last else _prune_inputs(shape)
        contracts[opset] = ((*inputs, *past, *planes, *prune_inputs), (*present, *outputs))
    return _graph_spec(DECODER.format(index), contracts)


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


def _row_specs(
    index: int, layers: range, shape: DecoderShape, *, is_last: bool, dtype: DType
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and outputs of a segment that follow its rows: no caches, no pruning."""
    rows, kept = ("batch", "sequence"), ("batch", "kept")
    width, half = shape.hidden_size, shape.head_dim // 2
    entry = "inputs_embeds" if index == 0 else "hidden_states"
    inputs = (
        TensorSpec(name=entry, dtype=dtype, shape=(*rows, width)),
        *_attention_specs(layers, shape, dtype, is_last=is_last),
    )
    if is_last:
        logits = ("batch", 1, shape.vocab_size)
        return inputs, (TensorSpec(name="logits", dtype="float32", shape=logits),)
    return inputs, (
        TensorSpec(name="kept_hidden_states", dtype=dtype, shape=(*kept, width)),
        TensorSpec(name="kept_cos", dtype=dtype, shape=(*kept, half)),
        TensorSpec(name="kept_sin", dtype=dtype, shape=(*kept, half)),
        TensorSpec(name="kept_indices", dtype="int64", shape=kept),
        TensorSpec(name="scores", dtype="float32", shape=rows),
    )


def _prune_inputs(shape: DecoderShape) -> tuple[TensorSpec, ...]:
    rows, half = ("batch", "sequence"), shape.head_dim // 2
    return (
        TensorSpec(name="prune_priority", dtype="float32", shape=rows),
        TensorSpec(name="score_cos", dtype="float32", shape=(*rows, half)),
        TensorSpec(name="score_sin", dtype="float32", shape=(*rows, half)),
        TensorSpec(name="score_mask", dtype="float32", shape=rows),
        TensorSpec(name="num_kept", dtype="int64", shape=(1,)),
    )


def _cache_specs(
    prefix: str, layers: range, shape: DecoderShape, length: str, dtype: DType
) -> list[TensorSpec]:
    dims = ("batch", shape.num_key_value_heads, length, shape.head_dim)
    return [TensorSpec(name=n, dtype=dtype, shape=dims) for n in cache_names(prefix, layers)]


def _main_opset(opsets: Collection[int]) -> int:
    return max((opset for opset in opsets if opset != IN_PLACE_OPSET), default=IN_PLACE_OPSET)


def _graph_spec(name: str, contracts: Mapping[int, _Contract]) -> GraphSpec:
    """Return a graph with a form for each opset; its own contract is that of the main form."""
    main = _main_opset(contracts)
    inputs, outputs = contracts[main]
    forms = []
    for opset, contract in contracts.items():
        differs = contract != contracts[main]
        forms.append(
            GraphForm(
                opset=opset,
                file=f"onnx/{name}{'' if opset == main else f'.opset{opset}'}.onnx",
                tensorrt=TENSORRT_VERSIONS[opset],
                inputs=contract[0] if differs else None,
                outputs=contract[1] if differs else None,
            )
        )
    return GraphSpec(name=name, forms=tuple(forms), inputs=inputs, outputs=outputs)
