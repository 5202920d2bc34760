"""What the text decoders of Gemma, Gemma 2 and Gemma 3 have and Llama has not.

Their norms store what is added to 1, embeddings are scaled, and from Gemma 2 on some layers are
local: they see a window of positions only, in Gemma 3 through a rotary embedding of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feather_edge.checkpoint.fields import ConfigFields
from feather_edge.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

_COMMON: dict[str, Any] = {
    "vocab_size": 256000,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "tie_word_embeddings": True,
}

_GEMMA2: dict[str, Any] = {
    **_COMMON,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 2,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}

GEMMA_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma": {
        **_COMMON,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "hidden_act": "gelu_pytorch_tanh",
    },
    "gemma2": _GEMMA2,
    "gemma3_text": {
        **_GEMMA2,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "sliding_window_pattern": 6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
    },
}

_LAYER_TYPES = ("sliding_attention", "full_attention")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalAttention:
    """Layers that see a window of positions only.

    Attributes:
        layers: which, ascending.
        window: positions that a row sees, its own and those before it.
        rope_theta: base of their rotary frequencies; None for the decoder's own embedding.
    """

    layers: tuple[int, ...]
    window: int
    rope_theta: float | None


def gemma_rope(model_type: str, part: dict[str, Any]) -> dict[str, Any]:
    """Return a text_config whose rotary settings are those of the layers that see everything.

    Gemma 3 has two sets, which transformers 5 writes by the kind of layer.
    """
    by_kind = part.get("rope_parameters")
    if model_type != "gemma3_text" or not isinstance(by_kind, dict):
        return part
    full = by_kind.get("full_attention") or {}
    scaling = part.get("rope_scaling") or {}
    return {**part, "rope_scaling": None, "rope_parameters": {**full, **scaling}}


def gemma_facts(model_type: str, fields: ConfigFields) -> dict[str, Any]:
    """Return the fields of ``TextConfig`` that a Gemma decoder has and others have not.

    Raises:
        CheckpointError: a value is no sensible one.
        UnsupportedModelError: the decoder is a variant that is not supported.
    """
    if model_type not in GEMMA_DEFAULTS:
        return {}
    if model_type == "gemma3_text" and fields.get("use_bidirectional_attention"):
        raise UnsupportedModelError(
            "text_config: use_bidirectional_attention of gemma3_text is not supported: such a "
            "model embeds texts and does not answer"
        )
    facts: dict[str, Any] = {
        "has_unit_offset": True,
        "embedding_scale": fields.size("hidden_size") ** 0.5,
    }
    if model_type == "gemma":
        return facts
    facts |= {
        "has_post_norms": True,
        "attention_scale": fields.positive("query_pre_attn_scalar") ** -0.5,
        "local": _local_attention(model_type, fields),
    }
    if model_type == "gemma2":  # Gemma 3 inherited the fields, but its models do not read them
        facts["attention_softcap"] = _softcap(fields, "attn_logit_softcapping")
        facts["logits_softcap"] = _softcap(fields, "final_logit_softcapping")
    return facts


def gemma_activation(model_type: str, fields: ConfigFields) -> str:
    """Return the activation of the MLP.

    Gemma's first releases say gelu and mean its tanh approximation; transformers reads it so.
    """
    if model_type != "gemma":
        return fields.text("hidden_activation")
    named = fields.text("hidden_act")
    return "gelu_pytorch_tanh" if named == "gelu" else named


def _softcap(fields: ConfigFields, name: str) -> float | None:
    return None if fields.get(name) is None else fields.positive(name)


def _local_attention(model_type: str, fields: ConfigFields) -> LocalAttention | None:
    has_own_rope = model_type == "gemma3_text"
    if fields.get("sliding_window") is None and not has_own_rope:
        return None
    layers = tuple(
        layer for layer, kind in enumerate(_layer_types(fields)) if kind == "sliding_attention"
    )
    if not layers:
        return None
    theta = _local_theta(fields) if has_own_rope else None
    return LocalAttention(layers=layers, window=fields.size("sliding_window"), rope_theta=theta)


def _layer_types(fields: ConfigFields) -> list[str]:
    num_layers = fields.size("num_hidden_layers")
    kinds = fields.get("layer_types")
    if kinds is None:
        pattern = fields.size("sliding_window_pattern")
        return [_LAYER_TYPES[(layer + 1) % pattern == 0] for layer in range(num_layers)]
    if not isinstance(kinds, list) or len(kinds) != num_layers or set(kinds) - {*_LAYER_TYPES}:
        raise CheckpointError(
            f"text_config: layer_types is {kinds!r}; it must name one of "
            f"{' and '.join(_LAYER_TYPES)} for each of {num_layers} layers"
        )
    return kinds


def _local_theta(fields: ConfigFields) -> float:
    by_kind = fields.get("rope_parameters")
    own: Mapping[str, Any] = (by_kind if isinstance(by_kind, dict) else {}).get(
        "sliding_attention"
    ) or {}
    kind = own.get("rope_type", "default")
    if kind != "default":
        raise UnsupportedModelError(
            f"text_config: rope scaling of type {kind!r} in the local layers is not supported; "
            f"only default is"
        )
    default = {"rope_theta": fields.get("rope_local_base_freq")}
    return ConfigFields("text_config: local layers", dict(own), default).positive("rope_theta")
