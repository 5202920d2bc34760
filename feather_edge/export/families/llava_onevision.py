"""LLaVA-OneVision: tiles as in LLaVA-NeXT, scaled down to a number of them; SigLIP and Qwen2.

One of several pictures is not split: it is padded to a square and seen as one tile, as in
transformers' chat and in the model's training. Video, for which the family pools frames, is not
supported.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from feather_edge.checkpoint.preprocessing import pad_color
from feather_edge.checkpoint.text_config import PlainTextModelType
from feather_edge.checkpoint.vision_config import PLAIN_TOWERS
from feather_edge.errors import UnsupportedModelError
from feather_edge.export.families import FamilyInfo, FamilyModel
from feather_edge.export.families._anyres import read_canvases, read_tile, write_with_newline
from feather_edge.export.families._llava import LLAVA_DEFAULTS, TRACING_LIMIT, read_llava
from feather_edge.images import AnyresImages

if TYPE_CHECKING:
    from feather_edge.checkpoint.reader import Checkpoint

INFO = FamilyInfo(
    model_type="llava_onevision",
    examples=(
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    ),
    towers=PLAIN_TOWERS,
    decoders=get_args(PlainTextModelType),
    images="a thumbnail, and tiles stitched to one raster; one tile each if there are several",
    limits=f"no video; {TRACING_LIMIT}",
)

DEFAULTS: dict[str, Any] = {
    **LLAVA_DEFAULTS,
    "image_token_index": 151646,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
    "vision_aspect_ratio": "anyres_max_9",
    "text_config": {"model_type": "qwen2"},
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "patch_size": 14,
        "image_size": 384,
        "num_hidden_layers": 26,
        "num_attention_heads": 16,
    },
}

SIDES = (384, 768, 1152, 1536, 1920, 2304)
CANVASES = tuple((height, width) for height in SIDES for width in SIDES)
"""What LlavaOnevisionConfig and its processor have where nothing is given."""


def read(checkpoint: Checkpoint) -> FamilyModel:
    """Return a LLaVA-OneVision checkpoint as a ``FamilyModel``; see ``families.read_family``."""
    model = read_llava(checkpoint, DEFAULTS)
    tile = read_tile(checkpoint, model, kind="LlavaOnevisionImageProcessor")
    if tile.mean is None:
        raise UnsupportedModelError(
            f"image preprocessing of {checkpoint.path} has do_normalize false; several pictures "
            f"are padded with the mean"
        )
    return FamilyModel(
        text=model.text,
        weights=model.weights,
        image=AnyresImages(
            token_id=model.token_id,
            grid=model.grid,
            canvases=read_canvases(checkpoint, model, CANVASES),
            preprocess=tile,
            max_tiles=_max_tiles(model.raw["vision_aspect_ratio"]),
            among_others=msgspec.structs.replace(tile, pad_color=pad_color(tile.mean)),
        ),
        write_vision_encoder=partial(write_with_newline, model=model),
        vision_spec=model.vision_spec,
    )


def _max_tiles(aspect_ratio: Any) -> int:
    match = re.fullmatch(r"anyres_max_([1-9]\d*)", str(aspect_ratio))
    if match is None:
        raise UnsupportedModelError(
            f"vision_aspect_ratio is {aspect_ratio!r}; supported is anyres_max_N, N tiles"
        )
    return int(match[1])
