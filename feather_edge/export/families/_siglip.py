"""What PaliGemma and Gemma 3 share: a whole SigLIP tower before the projector, one raster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from feather_edge.checkpoint.preprocessing import read_preprocess_config
from feather_edge.errors import CheckpointError
from feather_edge.export.blocks.vision import layer_norm, vision_tower
from feather_edge.graphs import vision_encoder_spec

if TYPE_CHECKING:
    import onnx_ir as ir

    from feather_edge.checkpoint.preprocessing import PreprocessConfig
    from feather_edge.checkpoint.reader import Checkpoint
    from feather_edge.checkpoint.text_config import TextConfig
    from feather_edge.checkpoint.vision_config import VisionConfig
    from feather_edge.export.builder import GraphBuilder
    from feather_edge.graphs import DType, GraphSpec


def siglip_features(g: GraphBuilder, vision: VisionConfig) -> ir.Value:
    """Write the tower with its last norm: [N, V, Dv]."""
    (hidden,) = vision_tower(
        g, g.inputs["pixel_values"], vision, feature_layers=(vision.num_layers,)
    )
    return layer_norm(g, hidden, "vision.post_layernorm", vision)


def square_vision_spec(
    vision: VisionConfig, text: TextConfig, dtype: DType, opsets: tuple[int, ...]
) -> GraphSpec:
    """Return the contract of a vision encoder of square pictures."""
    return vision_encoder_spec(
        num_channels=vision.num_channels,
        image_size=(vision.image_size, vision.image_size),
        hidden_size=text.hidden_size,
        dtype=dtype,
        opsets=opsets,
    )


def square_preprocess(checkpoint: Checkpoint, vision: VisionConfig) -> PreprocessConfig:
    """Return the preprocessing of a checkpoint.

    Raises:
        CheckpointError: if it does not make the pixels that the tower takes.
    """
    config = read_preprocess_config(checkpoint.path)
    if config.output_size != (vision.image_size, vision.image_size):
        raise CheckpointError(
            f"image preprocessing of {checkpoint.path} makes {config.output_size} pixels, but the "
            f"vision tower takes {vision.image_size} x {vision.image_size}; "
            f"the preprocessor config belongs to another model"
        )
    return config
