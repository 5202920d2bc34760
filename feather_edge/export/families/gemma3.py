"""Gemma 3: SigLIP, pooled to a coarser raster, and a decoder of local and global layers.

The tokens of one picture see each other both ways; all else is causal. Local layers see a window,
which counts original positions: pruned tokens do not widen it.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from feather_edge.checkpoint.fields import ConfigFields
from feather_edge.checkpoint.text_config import text_config
from feather_edge.checkpoint.vision_config import vision_config
from feather_edge.errors import CheckpointError
from feather_edge.export.families import FamilyInfo, FamilyModel
from feather_edge.export.families._llava import PREFIXES
from feather_edge.export.families._siglip import (
    siglip_features,
    square_preprocess,
    square_vision_spec,
)
from feather_edge.export.weights import Weights
from feather_edge.images import RasterImages
from feather_edge.manifest import PromptForm
from feather_edge.runtime.prompt import PromptFormatter

if TYPE_CHECKING:
    import onnx_ir as ir

    from feather_edge.checkpoint.reader import Checkpoint
    from feather_edge.checkpoint.text_config import TextConfig
    from feather_edge.checkpoint.vision_config import VisionConfig
    from feather_edge.export.builder import GraphBuilder

INFO = FamilyInfo(
    model_type="gemma3",
    examples=("google/gemma-3-4b-it", "google/gemma-3-12b-it", "google/gemma-3-27b-it"),
    towers=("siglip_vision_model",),
    decoders=("gemma3_text",),
    images="one raster of visual tokens for each picture",
    limits="no pan and scan; trained in bfloat16, its activations overflow fp16",
)

_DEFAULTS = {
    "mm_tokens_per_image": 256,
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "image_token_index": 262144,
}


def read(checkpoint: Checkpoint) -> FamilyModel:
    """Return a Gemma 3 checkpoint; see ``families.read_family``."""
    raw = checkpoint.config
    fields = ConfigFields("config.json", raw, _DEFAULTS)
    text = text_config(raw, supported=("gemma3_text",))
    vision = vision_config(raw, supported=("siglip_vision_model",))
    num_tokens, side = fields.size("mm_tokens_per_image"), vision.image_size // vision.patch_size
    pooled = math.isqrt(num_tokens)
    if pooled**2 != num_tokens or side % pooled:
        raise CheckpointError(
            f"config.json: mm_tokens_per_image is {num_tokens}; it must be the square of a number "
            f"that divides the {side} patches of a side"
        )
    token_id = fields.size("image_token_index")
    prompt = PromptFormatter.open(checkpoint.path, image_token_id=token_id)
    begin, end = (
        _token(prompt, fields.size(key), checkpoint)
        for key in ("boi_token_index", "eoi_token_index")
    )
    return FamilyModel(
        text=text,
        weights=Weights(checkpoint, PREFIXES),
        image=RasterImages(
            token_id=token_id,
            grid=(pooled, pooled),
            preprocess=square_preprocess(checkpoint, vision),
            text_before=f"\n\n{begin}",
            text_after=f"{end}\n\n",
        ),
        write_vision_encoder=partial(
            _write_vision_encoder, text=text, vision=vision, side=side, pooled=pooled
        ),
        vision_spec=partial(square_vision_spec, vision, text),
        prompt=PromptForm(image_mark=begin),
        prompt_attention="images",
    )


def _token(prompt: PromptFormatter, token_id: int, checkpoint: Checkpoint) -> str:
    token = prompt.token(token_id)
    if token is None:
        raise CheckpointError(
            f"the tokenizer of {checkpoint.path} has no token {token_id}, which config.json takes "
            f"for the begin or the end of a picture; they are of different models"
        )
    return token


def _write_vision_encoder(
    g: GraphBuilder, *, text: TextConfig, vision: VisionConfig, side: int, pooled: int
) -> ir.Model:
    features = siglip_features(g, vision)  # [N, V, Dv]
    width, pool = vision.hidden_size, side // pooled
    with g.scope("projector"):
        blocks = g.op(
            "Reshape", features, g.ints(-1, pooled, pool, pooled, pool, width), name="blocks"
        )
        means = g.op("ReduceMean", blocks, g.ints(2, 4), name="pool", keepdims=0)
        rows = g.op("Reshape", means, g.ints(-1, width), name="rows")
        norm = g.weight("projector.mm_soft_emb_norm.weight", shape=(width,), offset=1.0)
        normed = g.dialect.rms_norm(g, rows, norm, eps=vision.layer_norm_eps, name="norm")
        shape = (width, text.hidden_size)
        weight = g.weight("projector.mm_input_projection_weight", shape=shape)
        projected = g.op("MatMul", normed, weight, name="projection")
    return g.model({"image_features": projected})
