"""The vision encoder of a Qwen-VL, as the vision_config of its config.json describes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from feather_edge.checkpoint.fields import ConfigFields, check_model_type, config_part
from feather_edge.errors import CheckpointError

PatchVisionModelType = Literal["qwen2_vl_vision", "qwen2_5_vl_vision"]

_COMMON_DEFAULTS: dict[str, Any] = {
    "depth": 32,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2_vl_vision": {
        **_COMMON_DEFAULTS,
        "embed_dim": 1280,
        "hidden_size": 3584,
        "hidden_act": "quick_gelu",
        "mlp_ratio": 4,
    },
    "qwen2_5_vl_vision": {
        **_COMMON_DEFAULTS,
        "hidden_size": 3584,
        "hidden_act": "silu",
        "intermediate_size": 3420,
        "out_hidden_size": 3584,
        "window_size": 112,
        "fullatt_block_indexes": (7, 15, 23, 31),
    },
}
_ROPE_THETA = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchVisionConfig:
    """A vision encoder that takes patches of pictures of any size.

    Attributes:
        out_size: width of the visual tokens.
        patch_size: side of a patch, in pixels.
        temporal_patch_size: frames of a patch.
        merge_size: patches per side of a block that becomes one visual token.
        rope_theta: base of the rotary frequencies.
        window_size: visual tokens per side of a window of attention; 0 for no windows.
        full_attention_layers: layers that attend to the whole picture.
    """

    model_type: PatchVisionModelType
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_attention_heads: int
    num_channels: int
    hidden_act: str
    out_size: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    rope_theta: float
    window_size: int
    full_attention_layers: frozenset[int]

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def patch_width(self) -> int:
        """Numbers of a patch."""
        return self.num_channels * self.temporal_patch_size * self.patch_size**2


def patch_vision_config(
    raw: dict[str, Any], model_type: PatchVisionModelType
) -> PatchVisionConfig:
    """Return the vision encoder's config.

    Args:
        raw: config.json of the whole VLM; its vision_config holds the vision encoder.
        model_type: of the vision encoder; older files have the whole model's in its place.

    Raises:
        CheckpointError: a value is no sensible one.
        UnsupportedModelError: the vision encoder is another.
    """
    part = config_part(raw, "vision_config")
    given = part.get("model_type", model_type)
    check_model_type("vision_config", given, (model_type, model_type.removesuffix("_vision")))
    fields = ConfigFields("vision_config", part, _DEFAULTS[model_type])
    is_first = model_type == "qwen2_vl_vision"  # where hidden_size is the decoder's
    hidden_size = fields.size("embed_dim" if is_first else "hidden_size")
    num_heads, num_layers = fields.size("num_heads"), fields.size("depth")
    if hidden_size % (4 * num_heads):
        raise CheckpointError(
            f"vision_config: a width of {hidden_size} must be a multiple of 4 times num_heads "
            f"{num_heads}, for rows and columns each turn pairs"
        )
    patch_size, merge_size = fields.side("patch_size"), fields.size("spatial_merge_size")
    rope = ConfigFields("vision_config", config_part(part, "rope_parameters"), {})
    window_size = 0 if is_first else _window_size(fields, patch_size * merge_size)
    return PatchVisionConfig(
        model_type=model_type,
        hidden_size=hidden_size,
        intermediate_size=(
            hidden_size * fields.size("mlp_ratio")
            if is_first
            else fields.size("intermediate_size")
        ),
        num_layers=num_layers,
        num_attention_heads=num_heads,
        num_channels=fields.size("in_channels"),
        hidden_act=fields.text("hidden_act"),
        out_size=fields.size("hidden_size" if is_first else "out_hidden_size"),
        patch_size=patch_size,
        temporal_patch_size=fields.size("temporal_patch_size"),
        merge_size=merge_size,
        rope_theta=rope.positive("rope_theta") if rope.get("rope_theta") else _ROPE_THETA,
        window_size=window_size,
        full_attention_layers=_full_attention_layers(fields, num_layers, window_size),
    )


def _window_size(fields: ConfigFields, block_size: int) -> int:
    """Return the visual tokens per side of a window; config.json says pixels."""
    pixels = fields.size("window_size")
    if pixels < block_size:
        raise CheckpointError(
            f"vision_config: window_size {pixels} must be at least the {block_size} pixels of a "
            f"visual token"
        )
    return pixels // block_size


def _full_attention_layers(
    fields: ConfigFields, num_layers: int, window_size: int
) -> frozenset[int]:
    if not window_size:
        return frozenset(range(num_layers))
    layers = fields.get("fullatt_block_indexes")
    if not isinstance(layers, list | tuple) or any(type(layer) is not int for layer in layers):
        raise CheckpointError(
            f"vision_config: fullatt_block_indexes is {layers!r}; it must be a list of layers"
        )
    return frozenset(layers)
