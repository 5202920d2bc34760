"""Idefics3 and SmolVLM: tiles through a SigLIP-like tower, pixel shuffle, a Llama decoder.

Every picture is one raster of visual tokens per tile, and one of the whole picture. The tower's
table of positions is SigLIP's, but a patch finds its row by its place as a share of the tile.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from feather_edge.checkpoint.fields import ConfigFields
from feather_edge.checkpoint.preprocessing import read_image_processor
from feather_edge.checkpoint.split_preprocessing import split_config
from feather_edge.checkpoint.text_config import text_config
from feather_edge.checkpoint.vision_config import vision_config
from feather_edge.errors import CheckpointError
from feather_edge.export.blocks.pixel_shuffle import pixel_shuffle
from feather_edge.export.blocks.vision import layer_norm, vision_tower
from feather_edge.export.families import FamilyInfo, FamilyModel
from feather_edge.export.operators import linear
from feather_edge.export.weights import Weights
from feather_edge.graphs import vision_encoder_spec
from feather_edge.images import SplitImages

if TYPE_CHECKING:
    import onnx_ir as ir

    from feather_edge.checkpoint.reader import Checkpoint
    from feather_edge.checkpoint.split_preprocessing import SplitConfig
    from feather_edge.checkpoint.text_config import TextConfig
    from feather_edge.checkpoint.vision_config import VisionConfig
    from feather_edge.export.builder import GraphBuilder
    from feather_edge.graphs import DType, GraphSpec

INFO = FamilyInfo(
    model_type="idefics3",
    examples=(
        "HuggingFaceTB/SmolVLM-256M-Instruct",
        "HuggingFaceTB/SmolVLM-Instruct",
        "HuggingFaceM4/Idefics3-8B-Llama3",
    ),
    towers=("idefics3_vision",),
    decoders=("llama",),
    images="tiles in rows and columns and the whole picture, a raster each; or the whole alone",
)

PREFIXES = (
    ("model.text_model.", "text."),
    ("model.vision_model.", "vision."),
    ("model.connector.", "projector."),
    ("lm_head.", "lm_head."),
)

_DEFAULTS = {"image_token_id": 128257, "scale_factor": 2}


def read(checkpoint: Checkpoint) -> FamilyModel:
    """Return an Idefics3 or SmolVLM checkpoint; see ``families.read_family``."""
    raw = checkpoint.config
    fields = ConfigFields("config.json", raw, _DEFAULTS)
    text, vision = text_config(raw), vision_config(raw, supported=("idefics3_vision",))
    split = split_config(read_image_processor(checkpoint.path))
    side, shuffle = split.tile_side // vision.patch_size, fields.size("scale_factor")
    if side < 1 or side % shuffle:
        raise CheckpointError(
            f"tiles of {split.tile_side} pixels are {side} patches of {vision.patch_size} wide, "
            f"which scale_factor {shuffle} must divide; the preprocessor config belongs to "
            f"another model"
        )
    return FamilyModel(
        text=text,
        weights=Weights(checkpoint, PREFIXES),
        image=SplitImages(
            token_id=fields.size("image_token_id"),
            tile_side=split.tile_side,
            seen_side=side * vision.patch_size,
            tile_grid=(side // shuffle, side // shuffle),
            longest_edge=split.longest_edge,
            is_split=split.is_split,
            pixels=split.pixels,
        ),
        write_vision_encoder=partial(
            _write_vision_encoder, text=text, vision=vision, side=side, shuffle=shuffle
        ),
        vision_spec=partial(_vision_spec, split, vision, text),
    )


def position_ids(num_patches: int, table_side: int) -> list[int]:
    """Return the row of the table of positions for each patch of a square tile.

    transformers compares the shares in float32, which for some sizes that no published model has
    lands a row beside; here they are compared as the fractions they are.

    Args:
        num_patches: of one side of the tile.
        table_side: of the square table.
    """
    places = [index * table_side // num_patches for index in range(num_patches)]
    return [row * table_side + column for row in places for column in places]


def _vision_spec(
    split: SplitConfig,
    vision: VisionConfig,
    text: TextConfig,
    dtype: DType,
    opsets: tuple[int, ...],
) -> GraphSpec:
    return vision_encoder_spec(
        num_channels=vision.num_channels,
        image_size=(split.tile_side, split.tile_side),
        hidden_size=text.hidden_size,
        dtype=dtype,
        opsets=opsets,
    )


def _write_vision_encoder(
    g: GraphBuilder, *, text: TextConfig, vision: VisionConfig, side: int, shuffle: int
) -> ir.Model:
    table_side = vision.image_size // vision.patch_size
    rows = position_ids(side, table_side)
    (features,) = vision_tower(
        g,
        g.inputs["pixel_values"],
        vision,
        feature_layers=(vision.num_layers,),
        position_ids=None if rows == list(range(table_side**2)) else rows,
    )
    features = layer_norm(g, features, "vision.post_layernorm", vision)
    with g.scope("projector"):
        shuffled = pixel_shuffle(g, features, side=side, shuffle=shuffle, width=vision.hidden_size)
        projected = linear(
            g,
            shuffled,
            "projector.modality_projection.proj",
            in_size=vision.hidden_size * shuffle**2,
            out_sizes=(text.hidden_size,),
            has_bias=False,
            name="proj",
        )  # [N, V, D]
    features = g.op("Reshape", projected, g.ints(-1, text.hidden_size), name="image_features")
    return g.model({"image_features": features})
