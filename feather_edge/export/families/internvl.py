"""InternVL in the layout of transformers (-hf): InternViT, pixel shuffle, tiles, a thumbnail."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from feather_edge.checkpoint.fields import ConfigFields
from feather_edge.checkpoint.internvit_config import InternVitModelType, internvit_config
from feather_edge.checkpoint.preprocessing import preprocess_config, read_image_processor
from feather_edge.checkpoint.reader import read_json_object
from feather_edge.checkpoint.text_config import PlainTextModelType, text_config
from feather_edge.errors import CheckpointError, UnsupportedModelError
from feather_edge.export.blocks.pixel_shuffle import pixel_shuffle
from feather_edge.export.blocks.vision_internvit import internvit_final_norm, internvit_tower
from feather_edge.export.embeddings import HEAD
from feather_edge.export.families import FamilyInfo, FamilyModel
from feather_edge.export.families._llava import PREFIXES
from feather_edge.export.operators import activation, linear
from feather_edge.export.weights import Weights
from feather_edge.graphs import vision_encoder_spec
from feather_edge.images import TiledImages

if TYPE_CHECKING:
    import onnx_ir as ir

    from feather_edge.checkpoint.internvit_config import InternVitConfig
    from feather_edge.checkpoint.reader import Checkpoint
    from feather_edge.checkpoint.text_config import TextConfig
    from feather_edge.export.builder import GraphBuilder
    from feather_edge.graphs import DType, GraphSpec

INFO = FamilyInfo(
    model_type="internvl",
    examples=("OpenGVLab/InternVL3-1B-hf", "OpenGVLab/InternVL3_5-4B-HF"),
    towers=get_args(InternVitModelType),
    decoders=get_args(PlainTextModelType),
    images="tiles that cover it, then a thumbnail, each a raster of its own",
    limits="no video; a smaller max_patches in the image processor's file means fewer tiles",
)

DEFAULTS: dict[str, Any] = {
    "image_token_id": 151667,
    "downsample_ratio": 0.5,
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
}
"""Of InternVLConfig, which config.json may leave out."""

MARKS = {"start_image_token": "<img>", "end_image_token": "</img>"}
"""Tokens around a picture, by their names in tokenizer_config.json."""

PROJECTOR_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class InternVlModel:
    """A checkpoint without its pictures.

    Attributes:
        num_layers: layers of the tower before the features are taken.
        has_final_norm: the tower's last norm follows them.
        shuffle: patches per side of the square that becomes one visual token.
        act: activation of the projector.
    """

    text: TextConfig
    vision: InternVitConfig
    num_layers: int
    has_final_norm: bool
    shuffle: int
    act: str

    @property
    def patches_per_side(self) -> int:
        """Patches per side of a tile."""
        return int(self.vision.image_size // self.vision.patch_size)

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of the visual tokens of one tile."""
        side = self.patches_per_side // self.shuffle
        return (side, side)

    def vision_spec(self, dtype: DType, opsets: tuple[int, ...]) -> GraphSpec:
        """Return the contract of the vision graph."""
        return vision_encoder_spec(
            num_channels=self.vision.num_channels,
            image_size=(self.vision.image_size, self.vision.image_size),
            hidden_size=self.text.hidden_size,
            dtype=dtype,
            opsets=opsets,
        )


def read(checkpoint: Checkpoint) -> FamilyModel:
    """Return an InternVL checkpoint as a ``FamilyModel``; see ``families.read_family``."""
    given = {key: value for key, value in checkpoint.config.items() if value is not None}
    fields = ConfigFields("config.json", given, DEFAULTS)
    weights = Weights(checkpoint, PREFIXES)
    model = _read_model(fields, has_head=(HEAD in weights) if checkpoint.has_weights else None)
    return FamilyModel(
        text=model.text,
        weights=weights,
        image=_images(checkpoint, model, token_id=fields.size("image_token_id")),
        write_vision_encoder=partial(_write_vision_encoder, model=model),
        vision_spec=model.vision_spec,
    )


def _read_model(fields: ConfigFields, *, has_head: bool | None) -> InternVlModel:
    raw = {**fields.values, "text_config": {"model_type": "qwen2", **_text_part(fields)}}
    vision = internvit_config(raw)
    strategy = fields.get("vision_feature_select_strategy")
    if strategy != "default":
        raise UnsupportedModelError(
            f"vision_feature_select_strategy is {strategy!r}; supported is default, which drops "
            f"the class token: with it, features are no raster"
        )
    layer = fields.get("vision_feature_layer")
    if type(layer) is not int or not -vision.num_layers - 1 <= layer <= vision.num_layers:
        raise CheckpointError(
            f"vision_feature_layer is {layer!r}; it must index the {vision.num_layers + 1} hidden "
            f"states of the vision tower"
        )
    text = text_config(raw)
    if has_head is not None:
        # Releases of transformers disagree about what ties the head; the checkpoint knows.
        text = dataclasses.replace(text, tie_word_embeddings=not has_head)
    return InternVlModel(
        text=text,
        vision=vision,
        num_layers=layer % (vision.num_layers + 1),
        has_final_norm=layer == -1 and vision.has_final_norm,
        shuffle=_shuffle(fields.positive("downsample_ratio"), vision),
        act=fields.text("projector_hidden_act"),
    )


def _text_part(fields: ConfigFields) -> dict[str, Any]:
    part = fields.get("text_config")
    return part if isinstance(part, dict) else {}


def _shuffle(ratio: float, vision: InternVitConfig) -> int:
    """Return patches per side of a visual token."""
    shuffle = round(1 / ratio)
    side, patch = vision.image_size, vision.patch_size
    if shuffle < 1 or abs(shuffle * ratio - 1) > 1e-6 or side % (shuffle * patch):
        raise UnsupportedModelError(
            f"downsample_ratio {ratio} with images of {side} pixels and patches of {patch}: "
            f"supported are ratios 1/n where n patches divide an image evenly"
        )
    return shuffle


def _images(checkpoint: Checkpoint, model: InternVlModel, *, token_id: int) -> TiledImages:
    raw = read_image_processor(checkpoint.path)
    tile = preprocess_config(raw, kinds=("GotOcr2ImageProcessor",))
    side = model.vision.image_size
    if tile.output_size != (side, side):
        raise CheckpointError(
            f"image preprocessing of {checkpoint.path} makes tiles of {tile.output_size} pixels, "
            f"but the vision tower takes {side} x {side}; the preprocessor config belongs to "
            f"another model"
        )
    given = {key: value for key, value in raw.items() if value is not None}
    limits = ConfigFields("image preprocessing", given, {"min_patches": 1, "max_patches": 12})
    fewest, most = limits.size("min_patches"), limits.size("max_patches")
    if fewest > most:
        raise CheckpointError(
            f"image preprocessing: min_patches is {fewest} and max_patches {most}; the second "
            f"must be the larger one"
        )
    file = checkpoint.path / "tokenizer_config.json"
    tokens = read_json_object(file) if file.is_file() else {}
    before, after = (str(tokens.get(name) or mark) for name, mark in MARKS.items())
    return TiledImages(
        token_id=token_id,
        grid=model.grid,
        preprocess=tile,
        min_tiles=fewest,
        max_tiles=most,
        before=before,
        after=after,
    )


def _write_vision_encoder(g: GraphBuilder, *, model: InternVlModel) -> ir.Model:
    vision, width = model.vision, model.text.hidden_size
    hidden = internvit_tower(g, g.inputs["pixel_values"], vision, num_layers=model.num_layers)
    if model.has_final_norm:
        hidden = internvit_final_norm(g, hidden, vision)
    ends = (g.ints(1), g.ints(1 + vision.num_patches), g.ints(1))
    patches = g.op("Slice", hidden, *ends, name="drop_class_token")
    with g.scope("projector"):
        in_size = vision.hidden_size * model.shuffle**2
        squares = pixel_shuffle(
            g,
            patches,
            side=model.patches_per_side,
            shuffle=model.shuffle,
            width=vision.hidden_size,
        )
        weight, bias = (
            g.weight(f"projector.layer_norm.{part}", shape=(in_size,))
            for part in ("weight", "bias")
        )
        normed = g.op(
            "LayerNormalization",
            squares,
            weight,
            bias,
            name="norm",
            axis=-1,
            epsilon=PROJECTOR_EPS,
        )
        wide = linear(
            g,
            normed,
            "projector.linear_1",
            in_size=in_size,
            out_sizes=(width,),
            has_bias=True,
            name="linear_1",
        )
        projected = linear(
            g,
            activation(g, wide, model.act, name="act"),
            "projector.linear_2",
            in_size=width,
            out_sizes=(width,),
            has_bias=True,
            name="linear_2",
        )  # [N, V, D]
    features = g.op("Reshape", projected, g.ints(-1, width), name="image_features")
    return g.model({"image_features": features})
