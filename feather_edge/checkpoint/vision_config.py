"""The vision tower of a VLM, CLIP or SigLIP or one like it, as its vision_config describes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from feather_edge.checkpoint.fields import ConfigFields, check_model_type, config_part
from feather_edge.errors import CheckpointError

VisionModelType = Literal["clip_vision_model", "siglip_vision_model", "idefics3_vision"]

PLAIN_TOWERS: tuple[VisionModelType, ...] = ("clip_vision_model", "siglip_vision_model")
"""Towers of their own, which many families have."""

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
    "idefics3_vision": {
        "hidden_size": 1152,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
}

# What checkpoints call a tower; those of Idefics3 and SmolVLM were saved under several names.
_OTHER_NAMES: dict[str, VisionModelType] = {
    "idefics3": "idefics3_vision",
    "smolvlm": "idefics3_vision",
    "smolvlm_vision": "idefics3_vision",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerShape:
    """What a VLM must know of any tower; image_size and patch_size are sides in pixels."""

    model_type: str
    hidden_size: int
    num_layers: int
    num_channels: int
    image_size: int
    patch_size: int

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return int(self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig(TowerShape):
    """A CLIP or SigLIP tower."""

    intermediate_size: int
    num_attention_heads: int
    layer_norm_eps: float
    hidden_act: str


def is_known_tower(raw: dict[str, Any]) -> bool:
    """Return whether ``vision_config`` reads the tower that a VLM's config.json names."""
    part = config_part(raw, "vision_config")
    return part.get("model_type", "clip_vision_model") in PLAIN_TOWERS


def vision_config(
    raw: dict[str, Any],
    *,
    supported: tuple[VisionModelType, ...] = PLAIN_TOWERS,
) -> VisionConfig:
    """Return the vision encoder's config.

    Args:
        raw: config.json of the whole VLM; its vision_config holds the vision encoder.
        supported: what the family takes; the first is what it means where no name is given.

    Raises:
        CheckpointError: a value is no sensible one.
        UnsupportedModelError: the model_type is not supported, or images are not square.
    """
    part = config_part(raw, "vision_config")
    if raw.get("vision_config") is None and supported[0] == "clip_vision_model":
        part = _LLAVA_VISION_DEFAULTS
    named = part.get("model_type", supported[0])
    model_type: VisionModelType = _OTHER_NAMES.get(named, named)
    check_model_type("vision_config", model_type, supported)
    fields = ConfigFields("vision_config", part, _VISION_DEFAULTS[model_type])
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
