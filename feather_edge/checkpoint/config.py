"""Typed views of the two halves of a Hugging Face VLM config: text and vision.

transformers leaves out of config.json whatever equals the default of the config class (the
text_config of llava-1.5-7b-hf names five values), so the defaults of each model_type are part of
the format and are tabled here. Both spellings of the rotary settings are read: `rope_theta` with
`rope_scaling`, and `rope_parameters`, which transformers 5 writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from feather_edge.errors import CheckpointError, UnsupportedModelError

TextModelType = Literal["llama", "mistral", "qwen2"]
VisionModelType = Literal["clip_vision_model", "siglip_vision_model"]
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
}

_VISION_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip_vision_model": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    "siglip_vision_model": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
}

# What LlavaConfig means when it has no vision_config at all: CLIP ViT-L/14 at 336 pixels.
_LLAVA_VISION_DEFAULTS: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
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
class TextConfig:
    """The decoder of a VLM.

    Attributes:
        attention_bias: q, k and v projections have biases.
        output_bias: the attention's output projection has a bias.
        mlp_bias: the gate, up and down projections have biases.
        tie_word_embeddings: the head is the embedding table.
        max_positions: positions a prompt and its answer may use: max_position_embeddings, or the
            sliding window if it is smaller, because within it a sliding window has no effect.
        rope_scaling: None for plain rotary embeddings.
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
    attention_bias: bool
    output_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    max_positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """The vision encoder of a VLM; image_size and patch_size are sides of squares in pixels."""

    model_type: VisionModelType
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    layer_norm_eps: float
    hidden_act: str
    num_channels: int


def text_config(raw: dict[str, Any]) -> TextConfig:
    """Return the decoder's config.

    Args:
        raw: config.json of the whole VLM; its text_config holds the decoder.

    Raises:
        CheckpointError: a value is no sensible one.
        UnsupportedModelError: the model_type or the rotary scaling is not supported.
    """
    part = _part(raw, "text_config")
    model_type: TextModelType = part.get("model_type", "llama")
    _check_model_type("text_config", model_type, get_args(TextModelType))
    fields = _Fields("text_config", part, _TEXT_DEFAULTS[model_type])
    num_attention_heads = fields.size("num_attention_heads")
    num_key_value_heads = fields.size("num_key_value_heads", if_none=num_attention_heads)
    if num_attention_heads % num_key_value_heads:
        raise CheckpointError(
            f"text_config: num_attention_heads {num_attention_heads} must be a multiple of "
            f"num_key_value_heads {num_key_value_heads}"
        )
    hidden_size = fields.size("hidden_size")
    # Only llama reads these flags; qwen2 always has q, k and v biases, mistral has none.
    has_llama_bias = model_type == "llama" and bool(fields.get("attention_bias"))
    tied = raw.get("tie_word_embeddings") or part.get("tie_word_embeddings")
    return TextConfig(
        model_type=model_type,
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.size("intermediate_size"),
        num_layers=fields.size("num_hidden_layers"),
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_key_value_heads,
        head_dim=_head_dim(fields, hidden_size, num_attention_heads),
        rms_norm_eps=fields.positive("rms_norm_eps"),
        hidden_act=fields.text("hidden_act"),
        rope_theta=_rope_theta(part),
        rope_scaling=_rope_scaling(part, fields),
        attention_bias=has_llama_bias or model_type == "qwen2",
        output_bias=has_llama_bias,
        mlp_bias=model_type == "llama" and bool(fields.get("mlp_bias")),
        tie_word_embeddings=bool(tied),
        max_positions=_max_positions(model_type, fields),
    )


def vision_config(raw: dict[str, Any]) -> VisionConfig:
    """Return the vision encoder's config.

    Args:
        raw: config.json of the whole VLM; its vision_config holds the vision encoder.

    Raises:
        CheckpointError: a value is no sensible one.
        UnsupportedModelError: the model_type is not supported, or images are not square.
    """
    part = _part(raw, "vision_config") if raw.get("vision_config") is not None else {}
    if raw.get("vision_config") is None:
        part = _LLAVA_VISION_DEFAULTS
    model_type: VisionModelType = part.get("model_type", "clip_vision_model")
    _check_model_type("vision_config", model_type, get_args(VisionModelType))
    fields = _Fields("vision_config", part, _VISION_DEFAULTS[model_type])
    config = VisionConfig(
        model_type=model_type,
        hidden_size=fields.size("hidden_size"),
        intermediate_size=fields.size("intermediate_size"),
        num_layers=fields.size("num_hidden_layers"),
        num_attention_heads=fields.size("num_attention_heads"),
        image_size=fields.side("image_size"),
        patch_size=fields.side("patch_size"),
        layer_norm_eps=fields.positive("layer_norm_eps"),
        hidden_act=fields.text("hidden_act"),
        num_channels=fields.size("num_channels"),
    )
    if config.hidden_size % config.num_attention_heads:
        raise CheckpointError(
            f"vision_config: hidden_size {config.hidden_size} must be a multiple of "
            f"num_attention_heads {config.num_attention_heads}"
        )
    if config.patch_size > config.image_size:
        raise CheckpointError(
            f"vision_config: patch_size {config.patch_size} must be at most image_size "
            f"{config.image_size}"
        )
    return config


@dataclass(frozen=True, slots=True)
class _Fields:
    """Values of one config part, with the class defaults of its model_type filled in."""

    subject: str
    values: dict[str, Any]
    defaults: dict[str, Any]

    def get(self, name: str) -> Any:
        return self.values.get(name, self.defaults.get(name))

    def size(self, name: str, *, if_none: int | None = None) -> int:
        value = self.get(name)
        value = if_none if value is None else value
        if type(value) is not int or value < 1:
            raise self._wrong(name, value, "an integer of at least 1")
        return value

    def side(self, name: str) -> int:
        """Return one side of a square that may be written as a pair."""
        value = self.get(name)
        if isinstance(value, list) and len(value) == 2:
            if value[0] != value[1]:
                raise UnsupportedModelError(
                    f"{self.subject}: {name} {value} is not square; only squares are supported"
                )
            return _Fields(self.subject, {name: value[0]}, {}).size(name)
        return self.size(name)

    def positive(self, name: str) -> float:
        value = self.get(name)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise self._wrong(name, value, "a number above 0")
        return float(value)

    def text(self, name: str) -> str:
        value = self.get(name)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a name")
        return value

    def _wrong(self, name: str, value: Any, allowed: str) -> CheckpointError:
        return CheckpointError(f"{self.subject}: {name} is {value!r}; it must be {allowed}")


def _part(raw: dict[str, Any], key: str) -> dict[str, Any]:
    part = raw.get(key)
    if part is None:
        return {}
    if not isinstance(part, dict):
        raise CheckpointError(f"config.json: {key} is {part!r}; it must be an object")
    return part


def _check_model_type(subject: str, model_type: Any, supported: tuple[str, ...]) -> None:
    if model_type not in supported:
        raise UnsupportedModelError(
            f"{subject} has model_type {model_type!r}, which is not supported; "
            f"supported are {', '.join(supported)}"
        )


def _head_dim(fields: _Fields, hidden_size: int, num_attention_heads: int) -> int:
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


def _rope_theta(part: dict[str, Any]) -> float:
    theta = part.get("rope_theta")
    theta = _DEFAULT_ROPE_THETA if theta is None else theta
    parameters = {"rope_theta": theta, **_rope_parameters(part)}
    return _Fields("text_config", parameters, {}).positive("rope_theta")


def _rope_scaling(part: dict[str, Any], fields: _Fields) -> RopeScaling | None:
    parameters = _rope_parameters(part)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    partial = parameters.get("partial_rotary_factor", part.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise UnsupportedModelError(
            f"text_config: partial_rotary_factor {partial} is not supported; only 1.0 is"
        )
    if kind in ("default", None):
        return None
    supported: tuple[str, ...] = get_args(RopeType)
    if kind not in supported:
        raise UnsupportedModelError(
            f"text_config: rope scaling of type {kind!r} is not supported; supported are "
            f"default, {', '.join(supported)}"
        )
    scaling = _Fields(
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


def _max_positions(model_type: str, fields: _Fields) -> int:
    max_positions = fields.size("max_position_embeddings")
    if model_type == "llama" or fields.get("sliding_window") is None:
        return max_positions
    if model_type == "qwen2" and not _has_sliding_layers(fields):
        return max_positions
    return min(max_positions, fields.size("sliding_window"))


def _has_sliding_layers(fields: _Fields) -> bool:
    """Whether any layer of a qwen2 decoder attends within the window only."""
    if not fields.get("use_sliding_window"):
        return False
    if fields.get("layer_types") is not None:
        return "sliding_attention" in fields.get("layer_types")
    return bool(fields.size("num_hidden_layers") > fields.get("max_window_layers"))
