"""What LLaVA-NeXT and LLaVA-OneVision share: tiles of any resolution, and the newline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from feather_edge.checkpoint.preprocessing import preprocess_config, read_image_processor
from feather_edge.errors import CheckpointError, UnsupportedModelError
from feather_edge.export.families._llava import write_features

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from feather_edge.checkpoint.preprocessing import PreprocessConfig
    from feather_edge.checkpoint.reader import Checkpoint
    from feather_edge.export.builder import GraphBuilder
    from feather_edge.export.families._llava import LlavaModel

PINPOINTS = "image_grid_pinpoints"


def write_with_newline(g: GraphBuilder, *, model: LlavaModel) -> ir.Model:
    """Write a vision graph whose ``image_features`` end with the newline, as one row more."""
    width = model.text.hidden_size
    tokens = write_features(g, model)
    newline = g.weight("projector.image_newline", shape=(width,))
    row = g.op("Unsqueeze", newline, g.ints(0), name="newline")
    return g.model({"image_features": g.op("Concat", tokens, row, name="with_newline", axis=0)})


def read_tile(checkpoint: Checkpoint, model: LlavaModel, *, kind: str) -> PreprocessConfig:
    """Return how the thumbnail is made: the whole picture, resized to one tile.

    Args:
        checkpoint: the folder.
        model: what was read of it.
        kind: the image processor that the family has.

    Raises:
        CheckpointError: if the tile is not what the tower takes.
        UnsupportedModelError: if the processor is another one, or resizes nothing.
    """
    config = preprocess_config(read_image_processor(checkpoint.path), kinds=(kind,))
    side = model.vision.image_size
    if config.resize_to is None and config.resize_shortest_edge is None:
        raise UnsupportedModelError(
            f"image preprocessing of {checkpoint.path} has do_resize false; tiles need a size"
        )
    shortest = config.resize_shortest_edge
    resized = (shortest, shortest) if config.resize_to is None else config.resize_to
    if resized != (side, side) or config.crop_to not in (None, resized):
        raise CheckpointError(
            f"image preprocessing of {checkpoint.path} makes tiles of {resized}, cropped to "
            f"{config.crop_to}, but the vision tower takes {side} x {side}; size and crop_size "
            f"must be that"
        )
    return msgspec.structs.replace(
        config, resize_to=(side, side), resize_shortest_edge=None, crop_to=None
    )


def read_canvases(
    checkpoint: Checkpoint, model: LlavaModel, default: Sequence[Sequence[int]]
) -> tuple[tuple[int, int], ...]:
    """Return the (height, width) in pixels that pictures are fitted into.

    Raises:
        CheckpointError: if they are no sizes in tiles, or processor and model disagree.
    """
    processor = read_image_processor(checkpoint.path).get(PINPOINTS) or default
    config = model.raw.get(PINPOINTS) or default
    canvases = _canvases(config, side=model.vision.image_size)
    if _canvases(processor, side=model.vision.image_size) != canvases:
        raise CheckpointError(
            f"{PINPOINTS} of config.json and of the image processor differ; the processor's "
            f"prompts would not fit the model: copy both files from one checkpoint"
        )
    return canvases


def _canvases(pinpoints: Any, *, side: int) -> tuple[tuple[int, int], ...]:
    try:
        canvases = msgspec.convert(pinpoints, tuple[tuple[int, int], ...])
    except msgspec.ValidationError as error:
        raise CheckpointError(
            f"{PINPOINTS} is {pinpoints!r}; it must be a list of [height, width] in pixels"
        ) from error
    for canvas in canvases:
        if any(extent < side or extent % side for extent in canvas):
            raise CheckpointError(
                f"{PINPOINTS} has {list(canvas)}; height and width must be multiples of the "
                f"tower's {side} pixels"
            )
    if not canvases:
        raise CheckpointError(f"{PINPOINTS} is empty; it must have a [height, width]")
    return canvases
