"""LLaVA 1.5 and its kin: one picture is one square raster of visual tokens."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, get_args

from feather_edge.checkpoint.preprocessing import read_preprocess_config
from feather_edge.checkpoint.text_config import PlainTextModelType
from feather_edge.checkpoint.vision_config import PLAIN_TOWERS
from feather_edge.errors import CheckpointError
from feather_edge.export.families import FamilyInfo, FamilyModel
from feather_edge.export.families._llava import (
    LLAVA_DEFAULTS,
    TRACING_LIMIT,
    LlavaModel,
    read_llava,
    write_features,
)
from feather_edge.images import RasterImages

if TYPE_CHECKING:
    import onnx_ir as ir

    from feather_edge.checkpoint.preprocessing import PreprocessConfig
    from feather_edge.checkpoint.reader import Checkpoint
    from feather_edge.checkpoint.vision_config import TowerShape
    from feather_edge.export.builder import GraphBuilder

INFO = FamilyInfo(
    model_type="llava",
    examples=("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-interleave-qwen-0.5b-hf"),
    towers=PLAIN_TOWERS,
    decoders=get_args(PlainTextModelType),
    images="one raster for each picture, resized or padded to one size",
    limits=TRACING_LIMIT,
)


def read(checkpoint: Checkpoint) -> FamilyModel:
    """Return a LLaVA checkpoint as a ``FamilyModel``; see ``families.read_family``."""
    model = read_llava(checkpoint, LLAVA_DEFAULTS)
    return FamilyModel(
        text=model.text,
        weights=model.weights,
        image=RasterImages(
            token_id=model.token_id,
            grid=model.grid,
            preprocess=_preprocess(checkpoint, model.vision),
        ),
        write_vision_encoder=partial(_write_vision_encoder, model=model),
        vision_spec=model.vision_spec,
        is_traced=model.is_traced,
    )


def _write_vision_encoder(g: GraphBuilder, *, model: LlavaModel) -> ir.Model:
    return g.model({"image_features": write_features(g, model)})


def _preprocess(checkpoint: Checkpoint, vision: TowerShape) -> PreprocessConfig:
    config = read_preprocess_config(checkpoint.path)
    if config.output_size != (vision.image_size, vision.image_size):
        raise CheckpointError(
            f"image preprocessing of {checkpoint.path} makes {config.output_size} pixels, but the "
            f"vision tower takes {vision.image_size} x {vision.image_size}; "
            f"the preprocessor config belongs to another model"
        )
    return config
