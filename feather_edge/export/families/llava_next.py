"""LLaVA-NeXT (1.6): a thumbnail, and tiles stitched to one raster with a newline after rows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, get_args

from feather_edge.checkpoint.text_config import PlainTextModelType
from feather_edge.checkpoint.vision_config import PLAIN_TOWERS
from feather_edge.export.families import FamilyInfo, FamilyModel
from feather_edge.export.families._anyres import read_canvases, read_tile, write_with_newline
from feather_edge.export.families._llava import LLAVA_DEFAULTS, TRACING_LIMIT, read_llava
from feather_edge.images import AnyresImages

if TYPE_CHECKING:
    from feather_edge.checkpoint.reader import Checkpoint

INFO = FamilyInfo(
    model_type="llava_next",
    examples=("llava-hf/llava-v1.6-mistral-7b-hf", "llava-hf/llama3-llava-next-8b-hf"),
    towers=PLAIN_TOWERS,
    decoders=get_args(PlainTextModelType),
    images="a thumbnail, and tiles stitched to one raster without padding",
    limits=TRACING_LIMIT,
)

CANVASES = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
"""What LlavaNextConfig and its processor have where nothing is given."""


def read(checkpoint: Checkpoint) -> FamilyModel:
    """Return a LLaVA-NeXT checkpoint as a ``FamilyModel``; see ``families.read_family``."""
    model = read_llava(checkpoint, LLAVA_DEFAULTS)
    return FamilyModel(
        text=model.text,
        weights=model.weights,
        image=AnyresImages(
            token_id=model.token_id,
            grid=model.grid,
            canvases=read_canvases(checkpoint, model, CANVASES),
            preprocess=read_tile(checkpoint, model, kind="LlavaNextImageProcessor"),
        ),
        write_vision_encoder=partial(write_with_newline, model=model),
        vision_spec=model.vision_spec,
        is_traced=model.is_traced,
    )
