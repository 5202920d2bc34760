"""PaliGemma and PaliGemma 2: SigLIP, one linear layer, Gemma or Gemma 2.

A picture's tokens and the whole prompt see each other both ways; only the answer is causal.
transformers counts positions from 1 here; rotary attention knows differences only, so that
everything else counts from 0 changes nothing.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from feather_edge.checkpoint.fields import ConfigFields
from feather_edge.checkpoint.text_config import text_config
from feather_edge.checkpoint.vision_config import vision_config
from feather_edge.export.families import FamilyInfo, FamilyModel
from feather_edge.export.families._llava import PREFIXES
from feather_edge.export.families._siglip import (
    siglip_features,
    square_preprocess,
    square_vision_spec,
)
from feather_edge.export.operators import linear
from feather_edge.export.weights import Weights
from feather_edge.images import RasterImages
from feather_edge.manifest import PromptForm

if TYPE_CHECKING:
    import onnx_ir as ir

    from feather_edge.checkpoint.reader import Checkpoint
    from feather_edge.checkpoint.text_config import TextConfig
    from feather_edge.checkpoint.vision_config import VisionConfig
    from feather_edge.export.builder import GraphBuilder

INFO = FamilyInfo(
    model_type="paligemma",
    examples=("google/paligemma-3b-mix-224", "google/paligemma2-3b-mix-448"),
    towers=("siglip_vision_model",),
    decoders=("gemma", "gemma2"),
    images="one raster of visual tokens for each picture",
    limits="a prompt is one text, such as 'detect cup': the models have no conversations",
)

# What PaliGemmaConfig means where it has no such part at all.
_VISION: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4096,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}
_TEXT: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_hidden_layers": 18,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "vocab_size": 257152,
}


def read(checkpoint: Checkpoint) -> FamilyModel:
    """Return a PaliGemma checkpoint; see ``families.read_family``."""
    given = {key: value for key, value in checkpoint.config.items() if value is not None}
    raw = {"vision_config": _VISION, "text_config": _TEXT, **given}
    text = text_config(raw, supported=("gemma", "gemma2"))
    vision = vision_config(raw, supported=("siglip_vision_model",))
    side = vision.image_size // vision.patch_size
    return FamilyModel(
        text=text,
        weights=Weights(checkpoint, PREFIXES),
        image=RasterImages(
            token_id=ConfigFields("config.json", raw, {"image_token_index": 256000}).size(
                "image_token_index"
            ),
            grid=(side, side),
            preprocess=square_preprocess(checkpoint, vision),
        ),
        write_vision_encoder=partial(_write_vision_encoder, text=text, vision=vision),
        vision_spec=partial(square_vision_spec, vision, text),
        prompt=PromptForm(without_template="prefix"),
        prompt_attention="prefix",
    )


def _write_vision_encoder(g: GraphBuilder, *, text: TextConfig, vision: VisionConfig) -> ir.Model:
    features = siglip_features(g, vision)
    with g.scope("projector"):
        projected = linear(
            g,
            features,
            "projector.linear",
            in_size=vision.hidden_size,
            out_sizes=(text.hidden_size,),
            has_bias=True,
            name="linear",
        )  # [N, V, D]
    features = g.op("Reshape", projected, g.ints(-1, text.hidden_size), name="image_features")
    return g.model({"image_features": features})
