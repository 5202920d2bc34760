"""The decoder of a VLM, as the text_config of its config.json describes it.

Both spellings of the rotary settings are read: `rope_theta` with `rope_scaling`, and
`rope_parameters`, which transformers 5 writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from feather_edge.checkpoint.fields import ConfigFields, check_model_type, config_part
from feather_edge.checkpoint.gemma_config import (
    GEMMA_DEFAULTS,
    LocalAttention,
    gemma_activation,
    gemma_facts,
    gemma_rope,
)
from feather_edge.errors import CheckpointError, UnsupportedModelError

PlainTextModelType = Literal["llama", "mistral", "qwen2", "qwen3"]
"""Text models of their own, which many families have."""
TextModelType = (
    PlainTextModelType
    | Literal[
        "gemma", "gemma2", "gemma3_text", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"
    ]
)
RopeType = Literal["linear", "llama3"]

_TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "mistral": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
    },
    "qwen2": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    "qwen3": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    **GEMMA_DEFAULTS,
}

_QWEN2_VL_DEFAULTS: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 80,
    "rope_theta": 1e6,
    "mrope_section": (16, 24, 24),
}
_TEXT_DEFAULTS["qwen2_vl_text"] = _TEXT_DEFAULTS["qwen2_5_vl_text"] = _QWEN2_VL_DEFAULTS
_TEXT_DEFAULTS["qwen3_vl_text"] = {
    **_TEXT_DEFAULTS["qwen3"],
    "max_position_embeddings": 128000,
    "sliding_window": None,
    "rope_theta": 5e5,
    "mrope_section": (24, 20, 20),
}

_DEFAULT_ROPE_THETA = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """A supported change of the rotary frequencies.

    Attributes:
        type: ``linear`` divides every frequency by `factor`; ``llama3`` divides the low ones,
            keeps the high ones, and blends between.
        factor: the divisor.
        low_freq_factor: llama3 only: `original_max_positions` / it is the wavelength above which
            frequencies are divided.
        high_freq_factor: llama3 only: the wavelength below which they are kept, likewise.
        original_max_positions: llama3 only: positions the model was pretrained with.
    """

    type: RopeType
    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_positions: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mrope:
    """Rotary embedding by time, row and column.

    Attributes:
        sections: pairs of a head that turn by each; they sum to half of its width.
        is_interleaved: the sections take turns instead of following each other.
    """

    sections: tuple[int, int, int]
    is_interleaved: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """The decoder of a VLM.

    Attributes:
        attention_bias: q, k and v projections have biases.
        output_bias: the attention's output projection has a bias.
        mlp_bias: the gate, up and down projections have biases.
        has_qk_norm: queries and keys are normalised per head, before rotary embedding.
        tie_word_embeddings: the head is the embedding table.
        max_positions: positions a prompt and its answer may use: max_position_embeddings, or the
            sliding window if it is smaller, because within it a sliding window has no effect.
        rope_scaling: None for plain rotary embeddings.
        has_unit_offset: norm weights are stored as what is added to 1.
        has_post_norms: attention and MLP are normalised before they are added, too.
        attention_scale: of the product of query and key; None for 1 / sqrt(head_dim).
        attention_softcap: c, where c tanh(x / c) bounds the scaled products; None for no bound.
        logits_softcap: likewise for the logits.
        embedding_scale: what embeddings of text are multiplied by; visual tokens are not.
        local: layers that see a window only; None where all see everything.
        mrope: None where a row has one position.
    """

    model_type: TextModelType
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    hidden_act: str
    rope_theta: float
    rope_scaling: RopeScaling | None
    mrope: Mrope | None
    attention_bias: bool
    output_bias: bool
    mlp_bias: bool
    has_qk_norm: bool
    tie_word_embeddings: bool
    max_positions: int
    has_unit_offset: bool = False
    has_post_norms: bool = False
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logits_softcap: float | None = None
    embedding_scale: float = 1.0
    local: LocalAttention | None = None

    @property
    def score_scale(self) -> float:
        """What the product of query and key is multiplied by."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    def is_local(self, layer: int) -> bool:
        """Whether a layer sees a window only."""
        return self.local is not None and layer in self.local.layers


def text_config(
    raw: dict[str, Any], *, supported: tuple[str, ...] = get_args(PlainTextModelType)
) -> TextConfig:
    """Return the decoder's config.

    Args:
        raw: config.json of the whole VLM; its text_config holds the decoder.
        supported: model types that the family may have; the first is what it means where no name
            is given.

    Raises:
        CheckpointError: a value is no sensible one.
        UnsupportedModelError: the model_type or the rotary scaling is not supported.
    """
    part = config_part(raw, "text_config")
    model_type: TextModelType = part.get("model_type", supported[0])
    check_model_type("text_config", model_type, supported)
    fields = ConfigFields("text_config", part, _TEXT_DEFAULTS[model_type])
    num_attention_heads = fields.size("num_attention_heads")
    num_key_value_heads = fields.size("num_key_value_heads", if_none=num_attention_heads)
    if num_attention_heads % num_key_value_heads:
        raise CheckpointError(
            f"text_config: num_attention_heads {num_attention_heads} must be a multiple of "
            f"num_key_value_heads {num_key_value_heads}"
        )
    hidden_size = fields.size("hidden_size")
    head_dim = _head_dim(fields, hidden_size, num_attention_heads)
    is_gemma = model_type in GEMMA_DEFAULTS
    # Only these read the flag; Qwen2's always have q, k and v biases, mistral has none.
    reads_flag = model_type in {"llama", "qwen3", "qwen3_vl_text"} or is_gemma
    is_flagged = reads_flag and bool(fields.get("attention_bias"))
    tied = raw.get("tie_word_embeddings") or part.get("tie_word_embeddings")
    if is_gemma:  # tied unless the file says otherwise
        tied = raw.get("tie_word_embeddings", fields.get("tie_word_embeddings"))
    rope = gemma_rope(model_type, part)
    return TextConfig(
        model_type=model_type,
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.size("intermediate_size"),
        num_layers=fields.size("num_hidden_layers"),
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_key_value_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.positive("rms_norm_eps"),
        hidden_act=gemma_activation(model_type, fields) if is_gemma else fields.text("hidden_act"),
        rope_theta=_rope_theta(rope, fields),
        rope_scaling=_rope_scaling(rope, fields),
        mrope=_mrope(model_type, part, fields, head_dim),
        attention_bias=is_flagged or model_type.startswith("qwen2"),
        output_bias=is_flagged,
        mlp_bias=model_type == "llama" and bool(fields.get("mlp_bias")),
        has_qk_norm=model_type.startswith(("qwen3", "gemma3")),
        tie_word_embeddings=bool(tied),
        max_positions=_max_positions(model_type, fields),
        **gemma_facts(model_type, fields),
    )


def _head_dim(fields: ConfigFields, hidden_size: int, num_attention_heads: int) -> int:
    if fields.get("head_dim") is None and hidden_size % num_attention_heads:
        raise CheckpointError(
            f"text_config: hidden_size {hidden_size} must be a multiple of num_attention_heads "
            f"{num_attention_heads}, or head_dim must be given"
        )
    head_dim = fields.size("head_dim", if_none=hidden_size // num_attention_heads)
    if head_dim % 2:
        raise CheckpointError(
            f"text_config: head_dim {head_dim} is odd; rotary embeddings turn pairs"
        )
    return head_dim


def _rope_parameters(part: dict[str, Any]) -> dict[str, Any]:
    # transformers' own order: a non-empty rope_scaling wins over rope_parameters.
    parameters = part.get("rope_scaling") or part.get("rope_parameters") or {}
    if not isinstance(parameters, dict):
        raise CheckpointError(
            f"text_config: rope parameters are {parameters!r}; they must be an object"
        )
    return parameters


def _rope_theta(part: dict[str, Any], fields: ConfigFields) -> float:
    theta = fields.get("rope_theta")
    theta = _DEFAULT_ROPE_THETA if theta is None else theta
    parameters = {"rope_theta": theta, **_rope_parameters(part)}
    return ConfigFields("text_config", parameters, {}).positive("rope_theta")


def _rope_scaling(part: dict[str, Any], fields: ConfigFields) -> RopeScaling | None:
    parameters = _rope_parameters(part)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    partial = parameters.get("partial_rotary_factor", part.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise UnsupportedModelError(
            f"text_config: partial_rotary_factor {partial} is not supported; only 1.0 is"
        )
    # "dynamic" changes nothing up to max_position_embeddings, beyond which no prompt is taken.
    if kind in ("default", "dynamic", None) or (kind == "mrope" and fields.get("mrope_section")):
        return None
    supported: tuple[str, ...] = get_args(RopeType)
    if kind not in supported:
        raise UnsupportedModelError(
            f"text_config: rope scaling of type {kind!r} is not supported; supported are "
            f"default, dynamic, {', '.join(supported)}"
        )
    scaling = ConfigFields(
        f"text_config: {kind} rope scaling",
        parameters,
        {"original_max_position_embeddings": fields.get("max_position_embeddings")},
    )
    if kind == "linear":
        return RopeScaling(type="linear", factor=scaling.positive("factor"))
    return RopeScaling(
        type="llama3",
        factor=scaling.positive("factor"),
        low_freq_factor=scaling.positive("low_freq_factor"),
        high_freq_factor=scaling.positive("high_freq_factor"),
        original_max_positions=scaling.size("original_max_position_embeddings"),
    )


def _mrope(
    model_type: str, part: dict[str, Any], fields: ConfigFields, head_dim: int
) -> Mrope | None:
    """Return the sections of a decoder that has them by default."""
    default = fields.get("mrope_section")
    if default is None:
        return None
    parameters = _rope_parameters(part)
    sections = parameters.get("mrope_section", list(default))
    is_list = isinstance(sections, list) and len(sections) == 3
    if not is_list or any(type(size) is not int or size < 1 for size in sections):
        raise CheckpointError(
            f"text_config: mrope_section is {sections!r}; it must be three counts of at least 1"
        )
    if sum(sections) != head_dim // 2:
        raise CheckpointError(
            f"text_config: mrope_section {sections} must sum to half of head_dim {head_dim}"
        )
    time, row, column = sections
    # Only the code of the model type says so; mrope_interleaved in its configs is not read.
    return Mrope(sections=(time, row, column), is_interleaved=model_type == "qwen3_vl_text")


def _max_positions(model_type: str, fields: ConfigFields) -> int:
    max_positions = fields.size("max_position_embeddings")
    # Gemma's windows are masks of single layers and limit nothing.
    if model_type in {"llama", *GEMMA_DEFAULTS} or fields.get("sliding_window") is None:
        return max_positions
    if model_type.startswith("qwen") and not _has_sliding_layers(fields):
        return max_positions
    return min(max_positions, fields.size("sliding_window"))


def _has_sliding_layers(fields: ConfigFields) -> bool:
    """Whether any layer of a Qwen decoder attends within the window only."""
    if not fields.get("use_sliding_window"):
        return False
    if fields.get("layer_types") is not None:
        return "sliding_attention" in fields.get("layer_types")
    return bool(fields.size("num_hidden_layers") > fields.get("max_window_layers"))
