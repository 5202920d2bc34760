"""What the Qwen-VL families share: native resolution, M-RoPE, a merger, the names of tensors."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from feather_edge.checkpoint.patch_preprocessing import read_patch_preprocess_config
from feather_edge.checkpoint.patch_vision_config import patch_vision_config
from feather_edge.checkpoint.text_config import text_config
from feather_edge.errors import CheckpointError
from feather_edge.export.blocks.vision_patches import PATCH_KERNEL, patch_encoder
from feather_edge.export.families import FamilyModel
from feather_edge.export.weights import Weights
from feather_edge.graphs import patch_encoder_spec
from feather_edge.images import NativeImages

if TYPE_CHECKING:
    import onnx_ir as ir

    from feather_edge.checkpoint.patch_preprocessing import PatchPreprocessConfig
    from feather_edge.checkpoint.patch_vision_config import (
        PatchVisionConfig,
        PatchVisionModelType,
    )
    from feather_edge.checkpoint.reader import Checkpoint
    from feather_edge.checkpoint.text_config import TextModelType
    from feather_edge.export.builder import GraphBuilder
    from feather_edge.graphs import DType, GraphSpec

IMAGES = "one raster for each picture, at its own resolution; a token is a block of patches"
LIMITS = "no video"

PREFIXES = (
    # transformers from 4.52 on saves the first form, the hub has the second, without model.
    ("model.language_model.", "text."),
    ("model.visual.merger.", "projector."),
    ("model.visual.deepstack_merger_list.", "projector.deepstack."),
    ("model.visual.", "vision."),
    ("visual.merger.", "projector."),
    ("visual.", "vision."),
    ("model.", "text."),
    ("lm_head.", "lm_head."),
)

IMAGE_TOKEN_ID = 151655
"""The default of all three config classes, which config.json may leave out."""


def read_qwen_vl(
    checkpoint: Checkpoint, *, text_type: TextModelType, vision_type: PatchVisionModelType
) -> FamilyModel:
    """Return a Qwen-VL checkpoint as a ``FamilyModel``; see ``families.read_family``."""
    raw = checkpoint.config
    text = text_config(_with_text_config(raw, text_type), supported=(text_type,))
    vision = patch_vision_config(raw, vision_type)
    if vision.out_size != text.hidden_size:
        raise CheckpointError(
            f"vision encoder gives visual tokens of width {vision.out_size}, but the decoder has "
            f"width {text.hidden_size}; config.json is of no working model"
        )
    weights = Weights(checkpoint, PREFIXES, matrices=(PATCH_KERNEL,))
    try:
        image = NativeImages(
            token_id=raw.get("image_token_id", IMAGE_TOKEN_ID),
            preprocess=_preprocess(checkpoint, vision),
            head_dim=vision.head_dim,
            rope_theta=vision.rope_theta,
            window_size=vision.window_size,
            position_side=math.isqrt(vision.num_positions),
        )
    except ValueError as error:
        raise CheckpointError(f"vision_config: {error}") from error
    return FamilyModel(
        text=text,
        weights=weights,
        image=image,
        num_planes=len(vision.deepstack_layers),
        write_vision_encoder=partial(_write_vision_encoder, vision=vision, weights=weights),
        vision_spec=partial(_vision_spec, vision),
    )


def _with_text_config(raw: dict[str, Any], text_type: TextModelType) -> dict[str, Any]:
    """Return a config with a text_config: the hub's have the decoder's values at the top."""
    part = raw["text_config"] if raw.get("text_config") is not None else raw
    if not isinstance(part, dict):
        raise CheckpointError(f"config.json: text_config is {part!r}; it must be an object")
    given = part.get("model_type", text_type)
    is_whole = given == raw["model_type"]
    return {**raw, "text_config": {**part, "model_type": text_type if is_whole else given}}


def _preprocess(checkpoint: Checkpoint, vision: PatchVisionConfig) -> PatchPreprocessConfig:
    config = read_patch_preprocess_config(checkpoint.path)
    for name in ("patch_size", "temporal_patch_size", "merge_size"):
        ours, theirs = getattr(config, name), getattr(vision, name)
        if ours != theirs:
            raise CheckpointError(
                f"image preprocessing of {checkpoint.path} has {name} {ours}, but the vision "
                f"encoder has {theirs}; the preprocessor config belongs to another model"
            )
    return config


def _vision_spec(vision: PatchVisionConfig, dtype: DType, opsets: tuple[int, ...]) -> GraphSpec:
    return patch_encoder_spec(
        patches_per_token=vision.merge_size**2,
        patch_width=vision.patch_width,
        head_dim=vision.head_dim,
        tokens_per_window=vision.window_size**2,
        has_positions=vision.num_positions > 0,
        num_planes=len(vision.deepstack_layers),
        hidden_size=vision.out_size,
        dtype=dtype,
        opsets=opsets,
    )


def _write_vision_encoder(
    g: GraphBuilder, *, vision: PatchVisionConfig, weights: Weights
) -> ir.Model:
    outputs = patch_encoder(g, vision)
    weights.check_all_used("vision.")  # unlike some towers', every layer of these is of use
    return g.model(outputs)
