"""The vision encoder of a Qwen-VL, as the vision_config of its config.json describes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from feather_edge.checkpoint.fields import ConfigFields, check_model_type, config_part
from feather_edge.errors import CheckpointError

PatchVisionModelType = Literal["qwen2_vl_vision", "qwen2_5_vl_vision", "qwen3_vl_vision"]

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
    "qwen3_vl_vision": {
        **_COMMON_DEFAULTS,
        "depth": 27,
        "hidden_size": 1152,
        "hidden_act": "gelu_pytorch_tanh",
        "intermediate_size": 4304,
        "patch_size": 16,
        "out_hidden_size": 3584,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": (8, 16, 24),
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
        num_positions: learned position embeddings, a square that is stretched over the picture; 0
            for none.
        deepstack_layers: layers whose output also becomes a plane of visual tokens, which the
            decoder adds after one of its first layers.
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
    num_positions: int
    deepstack_layers: tuple[int, ...]

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
    has_windows = model_type == "qwen2_5_vl_vision"
    window_size = _window_size(fields, patch_size * merge_size) if has_windows else 0
    is_deep = model_type == "qwen3_vl_vision"
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
        full_attention_layers=(
            frozenset(_layers(fields, "fullatt_block_indexes", among=None))
            if has_windows
            else frozenset(range(num_layers))
        ),
        num_positions=fields.size("num_position_embeddings") if is_deep else 0,
        deepstack_layers=_layers(fields, "deepstack_visual_indexes", among=num_layers)
        if is_deep
        else (),
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


def _layers(fields: ConfigFields, name: str, *, among: int | None) -> tuple[int, ...]:
    """Return different layers, of the first ``among`` if that many there must be."""
    layers = fields.get(name)
    limit = math.inf if among is None else among
    if (
        not isinstance(layers, list | tuple)
        or any(type(layer) is not int or not 0 <= layer < limit for layer in layers)
        or len(set(layers)) < len(layers)
    ):
        allowed = "0 on" if among is None else f"0 to {among - 1}"
        raise CheckpointError(
            f"vision_config: {name} is {layers!r}; it must be a list of different layers from "
            f"{allowed}"
        )
    return tuple(layers)
