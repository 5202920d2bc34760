"""LLaVA 1.5 and its kin: a CLIP or SigLIP tower, a two-layer projector, a Llama-like decoder.

One image is one square raster of visual tokens. ``vision_feature_select_strategy`` "default"
drops CLIP's class token; "full" keeps every position of the tower, which makes a raster only for
towers without a class token.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from feather_edge.checkpoint.preprocessing import read_preprocess_config
from feather_edge.checkpoint.text_config import TextModelType, text_config
from feather_edge.checkpoint.vision_config import (
    VisionConfig,
    VisionModelType,
    is_known_tower,
    vision_config,
)
from feather_edge.errors import CheckpointError, UnsupportedModelError
from feather_edge.export.blocks.vision import vision_tower
from feather_edge.export.families import FamilyInfo, FamilyModel
from feather_edge.export.operators import activation, linear
from feather_edge.export.traced_tower import tower_shape, traced_tower
from feather_edge.export.weights import Weights
from feather_edge.graphs import vision_encoder_spec
from feather_edge.images import RasterImages

if TYPE_CHECKING:
    import onnx_ir as ir

    from feather_edge.checkpoint.preprocessing import PreprocessConfig
    from feather_edge.checkpoint.reader import Checkpoint
    from feather_edge.checkpoint.text_config import TextConfig
    from feather_edge.checkpoint.vision_config import TowerShape
    from feather_edge.export.builder import GraphBuilder
    from feather_edge.graphs import DType, GraphSpec

INFO = FamilyInfo(
    model_type="llava",
    examples=("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-interleave-qwen-0.5b-hf"),
    towers=get_args(VisionModelType),
    decoders=get_args(TextModelType),
    images="one raster for each picture, resized or padded to one size",
    limits="another tower is traced, for which the extra torch is needed",
)

WITH_CLASS_TOKEN = {"clip_vision_model": True, "siglip_vision_model": False}
"""Whether a known tower's rows begin with a class token, which "default" drops."""

PREFIXES = (
    # transformers up to 4.51 and 5.x save the first form, 4.52 to 4.57 the second.
    ("language_model.model.", "text."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.vision_model.", "vision."),
    ("vision_tower.", "vision."),
    ("multi_modal_projector.", "projector."),
    ("model.language_model.", "text."),
    ("model.vision_tower.vision_model.", "vision."),
    ("model.vision_tower.", "vision."),
    ("model.multi_modal_projector.", "projector."),
    ("lm_head.", "lm_head."),
)


def read(checkpoint: Checkpoint) -> FamilyModel:
    """Return a LLaVA checkpoint as a ``FamilyModel``; see ``families.read_family``."""
    raw = checkpoint.config
    text, vision = text_config(raw), _tower(raw)
    strategy = raw.get("vision_feature_select_strategy", "default")
    if strategy not in {"default", "full"}:
        raise CheckpointError(
            f"vision_feature_select_strategy is {strategy!r}; it must be default or full"
        )
    if vision.model_type in WITH_CLASS_TOKEN and WITH_CLASS_TOKEN[vision.model_type] != (
        strategy == "default"
    ):
        raise UnsupportedModelError(
            f"vision_feature_select_strategy {strategy!r} with a {vision.model_type} does not "
            f"give a raster of visual tokens; supported are default with clip_vision_model and "
            f"full with siglip_vision_model"
        )
    layers = _feature_layers(raw, vision)
    side = vision.image_size // vision.patch_size
    weights = Weights(checkpoint, PREFIXES)
    return FamilyModel(
        text=text,
        weights=weights,
        image=RasterImages(
            token_id=_image_token_id(raw),
            grid=(side, side),
            preprocess=_preprocess(checkpoint, vision),
        ),
        write_vision_encoder=partial(
            _write_vision_encoder,
            raw=raw,
            text=text,
            vision=vision,
            weights=weights,
            feature_layers=layers,
        ),
        vision_spec=partial(_vision_spec, vision, text),
    )


def _tower(raw: dict[str, Any]) -> TowerShape:
    return vision_config(raw) if is_known_tower(raw) else tower_shape(raw)


def _vision_spec(
    vision: TowerShape, text: TextConfig, dtype: DType, opsets: tuple[int, ...]
) -> GraphSpec:
    return vision_encoder_spec(
        num_channels=vision.num_channels,
        image_size=(vision.image_size, vision.image_size),
        hidden_size=text.hidden_size,
        dtype=dtype,
        opsets=opsets,
    )


def _write_vision_encoder(
    g: GraphBuilder,
    *,
    raw: dict[str, Any],
    text: TextConfig,
    vision: TowerShape,
    weights: Weights,
    feature_layers: list[int],
) -> ir.Model:
    pixels = g.inputs["pixel_values"]
    if isinstance(vision, VisionConfig):
        states = vision_tower(g, pixels, vision, feature_layers=feature_layers)
    else:
        with g.scope("traced_tower"):
            states = traced_tower(g, pixels, raw, weights, feature_layers=feature_layers)
    features = (
        states[0] if len(states) == 1 else g.op("Concat", *states, name="feature_layers", axis=-1)
    )
    if raw.get("vision_feature_select_strategy", "default") == "default":
        features = g.op(
            "Slice",
            features,
            g.ints(1),
            g.ints(1 + vision.num_patches),
            g.ints(1),
            name="drop_class_token",
        )
    with g.scope("projector"):
        has_bias = raw.get("multimodal_projector_bias", True)
        hidden = linear(
            g,
            features,
            "projector.linear_1",
            in_size=vision.hidden_size * len(feature_layers),
            out_sizes=(text.hidden_size,),
            has_bias=has_bias,
            name="linear_1",
        )
        hidden = activation(g, hidden, raw.get("projector_hidden_act", "gelu"), name="act")
        projected = linear(
            g,
            hidden,
            "projector.linear_2",
            in_size=text.hidden_size,
            out_sizes=(text.hidden_size,),
            has_bias=has_bias,
            name="linear_2",
        )  # [N, V, D]
    features = g.op("Reshape", projected, g.ints(-1, text.hidden_size), name="image_features")
    return g.model({"image_features": features})


def _preprocess(checkpoint: Checkpoint, vision: TowerShape) -> PreprocessConfig:
    config = read_preprocess_config(checkpoint.path)
    if config.output_size != (vision.image_size, vision.image_size):
        raise CheckpointError(
            f"image preprocessing of {checkpoint.path} makes {config.output_size} pixels, but the "
            f"vision tower takes {vision.image_size} x {vision.image_size}; "
            f"the preprocessor config belongs to another model"
        )
    return config


def _feature_layers(raw: dict[str, Any], vision: TowerShape) -> list[int]:
    """Return after how many layers to take features; Hugging Face counts hidden states."""
    given = raw.get("vision_feature_layer", -2)
    layers = []
    for layer in given if isinstance(given, list) else [given]:
        if not isinstance(layer, int) or not -vision.num_layers - 1 <= layer <= vision.num_layers:
            raise CheckpointError(
                f"vision_feature_layer is {given!r}; it must index the "
                f"{vision.num_layers + 1} hidden states of the vision tower"
            )
        layers.append(layer % (vision.num_layers + 1))
    return layers


def _image_token_id(raw: dict[str, Any]) -> int:
    for key in ("image_token_index", "image_token_id"):
        if isinstance(raw.get(key), int):
            return int(raw[key])
    return 32000  # the default of LlavaConfig, which config.json may leave out
