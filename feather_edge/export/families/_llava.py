"""What LLaVA 1.5, NeXT and OneVision share: a tower, a two-layer projector, a Llama-like decoder.

``vision_feature_select_strategy`` "default" drops CLIP's class token; "full" keeps every position
of the tower, which makes a raster only for towers without a class token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feather_edge.checkpoint.fields import ConfigFields, config_part
from feather_edge.checkpoint.text_config import text_config
from feather_edge.checkpoint.vision_config import VisionConfig, is_known_tower, vision_config
from feather_edge.errors import CheckpointError, UnsupportedModelError
from feather_edge.export.blocks.vision import vision_tower
from feather_edge.export.operators import activation, linear
from feather_edge.export.traced_tower import planned_tower, tower_shape, traced_tower
from feather_edge.export.weights import Weights
from feather_edge.graphs import vision_encoder_spec

if TYPE_CHECKING:
    import onnx_ir as ir

    from feather_edge.checkpoint.reader import Checkpoint
    from feather_edge.checkpoint.text_config import TextConfig
    from feather_edge.checkpoint.vision_config import TowerShape
    from feather_edge.export.builder import GraphBuilder
    from feather_edge.graphs import DType, GraphSpec

LLAVA_DEFAULTS: dict[str, Any] = {
    "image_token_index": 32000,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "projector_hidden_act": "gelu",
    "multimodal_projector_bias": True,
}
"""Of LlavaConfig and LlavaNextConfig, which config.json may leave out."""

TRACING_LIMIT = "another tower is traced, for which the extra torch is needed"

WITH_CLASS_TOKEN = {"clip_vision_model": True, "siglip_vision_model": False}
"""Whether a known tower's rows begin with a class token, which "default" drops."""

PREFIXES = (
    # transformers up to 4.51 and 5.x save the first form, 4.52 to 4.57 the second.
    ("language_model.model.", "text."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.vision_model.", "vision."),
    ("vision_tower.", "vision."),
    ("multi_modal_projector.", "projector."),
    ("image_newline", "projector.image_newline"),
    ("model.language_model.", "text."),
    ("model.vision_tower.vision_model.", "vision."),
    ("model.vision_tower.", "vision."),
    ("model.multi_modal_projector.", "projector."),
    ("model.image_newline", "projector.image_newline"),
    ("lm_head.", "lm_head."),
)


@dataclass(frozen=True, kw_only=True)
class LlavaModel:
    """A checkpoint of a LLaVA family, without its way of cutting pictures.

    Attributes:
        raw: config.json, with the family's defaults where it says nothing.
        vision: the tower's shape, or all of its config where the builder knows the tower.
        weights: under ``text.``, ``vision.``, ``projector.``, ``lm_head.weight``.
        feature_layers: after how many layers of the tower features are taken.
    """

    raw: dict[str, Any]
    text: TextConfig
    vision: TowerShape
    weights: Weights
    feature_layers: tuple[int, ...]

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of the visual tokens of one image of the tower."""
        side = self.vision.image_size // self.vision.patch_size
        return (side, side)

    @property
    def is_traced(self) -> bool:
        """Whether PyTorch writes the tower, which the builder does not know."""
        return not isinstance(self.vision, VisionConfig)

    @property
    def token_id(self) -> int:
        """Id of the image placeholder."""
        key = "image_token_id" if "image_token_id" in self.raw else "image_token_index"
        return ConfigFields("config.json", self.raw, {}).size(key)

    def vision_spec(self, dtype: DType, opsets: tuple[int, ...]) -> GraphSpec:
        """Return the contract of the vision graph."""
        return vision_encoder_spec(
            num_channels=self.vision.num_channels,
            image_size=(self.vision.image_size, self.vision.image_size),
            hidden_size=self.text.hidden_size,
            dtype=dtype,
            opsets=opsets,
        )


def read_llava(checkpoint: Checkpoint, defaults: dict[str, Any]) -> LlavaModel:
    """Read a checkpoint of a LLaVA family.

    Args:
        checkpoint: the folder.
        defaults: of the family's config class, which config.json may leave out. A part such as
            ``text_config`` is what the class makes without one.

    Raises:
        CheckpointError: if a value is no sensible one.
        UnsupportedModelError: if features are no raster, or a part is not supported.
    """
    raw = _with_defaults(checkpoint.config, defaults)
    text = text_config(raw)
    vision = vision_config(raw) if is_known_tower(raw) else tower_shape(raw)
    strategy = raw["vision_feature_select_strategy"]
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
    return LlavaModel(
        raw=raw,
        text=text,
        vision=vision,
        weights=Weights(checkpoint, PREFIXES),
        feature_layers=_feature_layers(raw["vision_feature_layer"], vision),
    )


def write_features(g: GraphBuilder, model: LlavaModel) -> ir.Value:
    """Write tower and projector; returns the visual tokens of all images in a row, [N * V, D]."""
    pixels, vision, width = g.inputs["pixel_values"], model.vision, model.text.hidden_size
    if isinstance(vision, VisionConfig):
        states = vision_tower(g, pixels, vision, feature_layers=model.feature_layers)
    else:
        write_tower = planned_tower if g.is_plan else traced_tower
        with g.scope("traced_tower"):
            states = write_tower(
                g, pixels, model.raw, model.weights, feature_layers=model.feature_layers
            )
    features = (
        states[0] if len(states) == 1 else g.op("Concat", *states, name="feature_layers", axis=-1)
    )
    if model.raw["vision_feature_select_strategy"] == "default":
        features = g.op(
            "Slice",
            features,
            g.ints(1),
            g.ints(1 + vision.num_patches),
            g.ints(1),
            name="drop_class_token",
        )
    with g.scope("projector"):
        has_bias = bool(model.raw["multimodal_projector_bias"])
        hidden = linear(
            g,
            features,
            "projector.linear_1",
            in_size=vision.hidden_size * len(model.feature_layers),
            out_sizes=(width,),
            has_bias=has_bias,
            name="linear_1",
        )
        hidden = activation(g, hidden, model.raw["projector_hidden_act"], name="act")
        projected = linear(
            g,
            hidden,
            "projector.linear_2",
            in_size=width,
            out_sizes=(width,),
            has_bias=has_bias,
            name="linear_2",
        )  # [N, V, D]
    return g.op("Reshape", projected, g.ints(-1, width), name="image_features")


def _with_defaults(raw: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in raw.items() if value is not None}
    filled = {**defaults, **given}
    for key, part in defaults.items():
        if isinstance(part, dict) and key in given:
            # As in transformers: a part that is there takes from the default its kind alone.
            filled[key] = {"model_type": part["model_type"], **config_part(given, key)}
    return filled


def _feature_layers(given: Any, vision: TowerShape) -> tuple[int, ...]:
    """Return after how many layers to take features; Hugging Face counts hidden states."""
    layers = []
    for layer in given if isinstance(given, list) else [given]:
        if not isinstance(layer, int) or not -vision.num_layers - 1 <= layer <= vision.num_layers:
            raise CheckpointError(
                f"vision_feature_layer is {given!r}; it must index the "
                f"{vision.num_layers + 1} hidden states of the vision tower"
            )
        layers.append(layer % (vision.num_layers + 1))
    return tuple(layers)
