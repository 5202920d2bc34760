"""How Idefics3 and SmolVLM cut pictures into tiles, read from the preprocessor config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from feather_edge.checkpoint.preprocessing import PreprocessConfig, preprocess_config
from feather_edge.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

KINDS = ("Idefics3ImageProcessor", "SmolVLMImageProcessor")

_MAX_SIDE = 2**13

_DEFAULTS: dict[str, Any] = {
    "size": {"longest_edge": 4 * 364},
    "max_image_size": {"longest_edge": 364},
    "do_resize": True,
    "do_image_splitting": True,
    "resample": 1,
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitConfig:
    """What happens to a picture before it is cut into tiles.

    Attributes:
        tile_side: of the square tiles, in pixels.
        longest_edge: of the picture after its resize; None where it is not resized so.
        is_split: cut into tiles; otherwise the whole picture becomes one.
        pixels: a resize to a fixed size, if there is one, then rescaling and normalisation.
    """

    tile_side: int
    longest_edge: int | None
    is_split: bool
    pixels: PreprocessConfig


def split_config(raw: Mapping[str, Any]) -> SplitConfig:
    """Normalise the settings of an Idefics3 or SmolVLM image processor.

    Raises:
        CheckpointError: a value is no sensible one.
        UnsupportedModelError: the kind of image processor, or its resize, is not supported.
    """
    named = str(raw.get("image_processor_type") or KINDS[0])
    if named.removesuffix("Fast").removesuffix("Pil") not in KINDS:
        raise UnsupportedModelError(
            f"image preprocessing: image_processor_type {named!r} does not cut pictures into "
            f"tiles; supported here are {', '.join(KINDS)}, each with or without Fast at the end"
        )
    settings = {**_DEFAULTS, **{key: v for key, v in raw.items() if v is not None}}
    tile_side = _edge(settings, "max_image_size")
    size, longest_edge, fixed = settings["size"], None, None
    if settings["do_resize"]:
        given = {key for key, v in size.items() if v is not None} if isinstance(size, dict) else ()
        if given == {"longest_edge"}:
            longest_edge = _edge(settings, "size")
        elif given == {"height", "width"}:
            fixed = size
        else:
            raise UnsupportedModelError(
                f"image preprocessing: size {size!r} is not supported; supported are "
                f"longest_edge alone, or height and width"
            )
    # The steps that each tile goes through are those of SigLIP.
    steps = ("resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    pixels = preprocess_config(
        {
            "image_processor_type": "SiglipImageProcessor",
            **{key: settings[key] for key in steps if key in settings},
            "size": fixed or {"height": tile_side, "width": tile_side},
        }
    )
    if fixed is None:
        pixels = msgspec.structs.replace(pixels, resize_to=None)
    return SplitConfig(
        tile_side=tile_side,
        longest_edge=longest_edge,
        is_split=bool(settings["do_image_splitting"]),
        pixels=pixels,
    )


def _edge(settings: Mapping[str, Any], key: str) -> int:
    value = settings[key]
    side = value.get("longest_edge") if isinstance(value, dict) else None
    if type(side) is not int or not 1 <= side <= _MAX_SIDE:
        raise CheckpointError(
            f"image preprocessing: {key} is {value!r}; it must have a longest_edge of 1 to "
            f"{_MAX_SIDE} pixels"
        )
    return side
