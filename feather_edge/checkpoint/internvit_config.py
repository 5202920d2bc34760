"""The InternViT tower of an InternVL, as the vision_config of its config.json describes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from feather_edge.checkpoint.fields import ConfigFields, check_model_type, config_part
from feather_edge.checkpoint.vision_config import TowerShape
from feather_edge.errors import CheckpointError, UnsupportedModelError

InternVitModelType = Literal["internvl_vision"]
NormType = Literal["layer_norm", "rms_norm"]

_DEFAULTS: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "attention_bias": False,
    "use_qk_norm": False,
    "intermediate_size": 4096,
    "hidden_act": "gelu",
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "image_size": 448,
    "patch_size": 14,
    "num_channels": 3,
    "use_absolute_position_embeddings": True,
    "use_mean_pooling": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class InternVitConfig(TowerShape):
    """An InternViT tower.

    Attributes:
        norm_type: of the norms before attention and MLP.
        attention_bias: q, k and v projections have biases; the output projection always has.
        has_qk_norm: queries and keys are normalised over all heads at once.
        has_positions: the embeddings have learnt positions.
        has_final_norm: a LayerNorm follows the last layer.
    """

    intermediate_size: int
    num_attention_heads: int
    hidden_act: str
    norm_type: NormType
    layer_norm_eps: float
    attention_bias: bool
    has_qk_norm: bool
    has_positions: bool
    has_final_norm: bool


def internvit_config(raw: dict[str, Any]) -> InternVitConfig:
    """Return the vision encoder's config.

    Args:
        raw: config.json of the whole VLM; its vision_config holds the vision encoder.

    Raises:
        CheckpointError: a value is no sensible one.
        UnsupportedModelError: the model_type or the norm is not supported, or images are not
            square.
    """
    part = config_part(raw, "vision_config")
    model_type = part.get("model_type", "internvl_vision")
    check_model_type("vision_config", model_type, ("internvl_vision",))
    fields = ConfigFields("vision_config", part, _DEFAULTS)
    norm_type: NormType = fields.get("norm_type")
    if norm_type not in ("layer_norm", "rms_norm"):
        raise UnsupportedModelError(
            f"vision_config: norm_type is {norm_type!r}; supported are layer_norm and rms_norm"
        )
    config = InternVitConfig(
        model_type=model_type,
        hidden_size=fields.size("hidden_size"),
        intermediate_size=fields.size("intermediate_size"),
        num_layers=fields.size("num_hidden_layers"),
        num_attention_heads=fields.size("num_attention_heads"),
        num_channels=fields.size("num_channels"),
        image_size=fields.side("image_size"),
        patch_size=fields.side("patch_size"),
        hidden_act=fields.text("hidden_act"),
        norm_type=norm_type,
        layer_norm_eps=fields.positive("layer_norm_eps"),
        attention_bias=bool(fields.get("attention_bias")),
        has_qk_norm=bool(fields.get("use_qk_norm")),
        has_positions=bool(fields.get("use_absolute_position_embeddings")),
        has_final_norm=not fields.get("use_mean_pooling"),
    )
    if config.hidden_size % config.num_attention_heads:
        raise CheckpointError(
            f"vision_config: hidden_size {config.hidden_size} must be a multiple of "
            f"num_attention_heads {config.num_attention_heads}"
        )
    return config
