"""How a checkpoint wants its images: read from its preprocessor config, in one normal form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec
import numpy as np

from feather_edge.checkpoint.fields import config_part
from feather_edge.checkpoint.reader import read_json_object
from feather_edge.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from pathlib import Path

PREPROCESSOR_FILE = "preprocessor_config.json"


PROCESSOR_FILE = "processor_config.json"

MAX_SIDE = 2**13
"""Pixels per side that an image may be resized or cropped to."""


Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]


_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)


_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


_HALF = (0.5, 0.5, 0.5)


# Class defaults of transformers, which a config file may leave out.
_COMMON_DEFAULTS: dict[str, Any] = {
    "resample": 3,
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_pad": False,
}


_CLIP_DEFAULTS: dict[str, Any] = {
    **_COMMON_DEFAULTS,
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "image_mean": _CLIP_MEAN,
    "image_std": _CLIP_STD,
}


_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": _CLIP_DEFAULTS,
    "LlavaImageProcessor": _CLIP_DEFAULTS,
    "SiglipImageProcessor": {
        **_COMMON_DEFAULTS,
        "size": {"height": 224, "width": 224},
        "do_center_crop": False,
        "image_mean": _HALF,
        "image_std": _HALF,
    },
    "Gemma3ImageProcessor": {
        **_COMMON_DEFAULTS,
        "resample": 2,
        "size": {"height": 224, "width": 224},
        "do_center_crop": False,
        "do_pan_and_scan": False,
        "image_mean": _HALF,
        "image_std": _HALF,
    },
    "LlavaNextImageProcessor": _CLIP_DEFAULTS,
    "LlavaOnevisionImageProcessor": {
        **_COMMON_DEFAULTS,
        "size": {"height": 384, "width": 384},
        "do_center_crop": False,
        "image_mean": _CLIP_MEAN,
        "image_std": _CLIP_STD,
    },
    "GotOcr2ImageProcessor": {
        **_COMMON_DEFAULTS,
        "size": {"height": 384, "width": 384},
        "do_center_crop": False,
        "image_mean": _CLIP_MEAN,
        "image_std": _CLIP_STD,
    },
}


WHOLE_IMAGE = (
    "CLIPImageProcessor",
    "Gemma3ImageProcessor",
    "LlavaImageProcessor",
    "SiglipImageProcessor",
)
"""Processors that make one array of one image."""


_OLD_NAMES = {"CLIPFeatureExtractor": "CLIPImageProcessor"}


class PreprocessConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What happens to an image before the vision encoder sees it, in this order.

    Attributes:
        pad_color: grey levels 0 to 255 that pad an image to a square; None for no padding.
        resize_shortest_edge: pixels of the shorter side after the resize, aspect ratio kept.
        resize_to: (height, width) after the resize, aspect ratio not kept.
        resample: filter of the resize.
        crop_to: (height, width) cut from the centre; a smaller image is padded with zeros.
        rescale_factor: what grey levels are multiplied by; None for no rescaling.
        mean: subtracted per channel; None for no normalisation.
        std: divided by, per channel, after the mean.
    """

    pad_color: tuple[int, int, int] | None = None
    resize_shortest_edge: int | None = None
    resize_to: tuple[int, int] | None = None
    resample: Resample = "bicubic"
    crop_to: tuple[int, int] | None = None
    rescale_factor: float | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        sides = (self.resize_shortest_edge, *(self.resize_to or ()), *(self.crop_to or ()))
        if not all(1 <= side <= MAX_SIDE for side in sides if side is not None):
            raise ValueError(f"a side of {sides} pixels is not 1 to {MAX_SIDE}")

    @property
    def output_size(self) -> tuple[int, int]:
        """(height, width) of every preprocessed image."""
        size = self.crop_to or self.resize_to
        if size is None:
            raise UnsupportedModelError(
                "image preprocessing has neither a crop nor a fixed size to resize to, so images "
                "would differ in size; set crop_size, or size with height and width"
            )
        return size


def read_preprocess_config(folder: Path) -> PreprocessConfig:
    """Return the preprocessing of a checkpoint folder.

    Raises:
        CheckpointError: no file holds it, or a value is no sensible one.
        UnsupportedModelError: it is of a kind that is not supported.
    """
    return preprocess_config(read_image_processor(folder))


def read_image_processor(folder: Path) -> dict[str, Any]:
    """Return the settings of a checkpoint folder's image processor as they are in the file.

    transformers 5 nests them in processor_config.json, and reads that before
    preprocessor_config.json where both exist; so does this.

    Raises:
        CheckpointError: neither file holds them.
    """
    for name in (PROCESSOR_FILE, PREPROCESSOR_FILE):
        if (folder / name).is_file():
            raw = read_json_object(folder / name)
            if name == PREPROCESSOR_FILE or "image_processor" in raw:
                return config_part(raw, "image_processor") or raw
    raise CheckpointError(
        f"{folder} does not say how to preprocess images: it has no {PREPROCESSOR_FILE} and no "
        f"{PROCESSOR_FILE} with an image_processor; copy the file from the original checkpoint"
    )


def preprocess_config(
    raw: dict[str, Any], *, kinds: tuple[str, ...] = WHOLE_IMAGE
) -> PreprocessConfig:
    """Normalise the content of preprocessor_config.json or processor_config.json.

    Args:
        raw: the file's content.
        kinds: image processors to accept. For those that tile, what is returned is of one tile.

    Raises:
        CheckpointError: a value is no sensible one.
        UnsupportedModelError: the kind of image processor is not supported.
    """
    raw = raw.get("image_processor", raw)
    named = raw.get("image_processor_type") or raw.get("feature_extractor_type") or "none"
    kind = _OLD_NAMES.get(named, str(named).removesuffix("Fast").removesuffix("Pil"))
    if kind not in kinds:
        raise UnsupportedModelError(
            f"image preprocessing: image_processor_type {named!r} is not supported; supported "
            f"are {', '.join(kinds)}, each with or without Fast at the end"
        )
    # transformers takes a null for "not given".
    given = {key: value for key, value in raw.items() if value is not None}
    settings = {**_DEFAULTS[kind], **given}
    # Processors that tile pad batches, which is no step of one image.
    has_padding = bool(settings["do_pad"]) and kind in WHOLE_IMAGE
    if has_padding and kind != "LlavaImageProcessor":
        raise UnsupportedModelError(f"image preprocessing: do_pad of {kind} is not supported")
    if settings.get("do_pan_and_scan"):
        raise UnsupportedModelError(
            "image preprocessing: do_pan_and_scan is not supported; set it to false in the "
            "preprocessor config, as it is in published checkpoints"
        )
    mean = _channels(settings, "image_mean") if settings["do_normalize"] else None
    shortest_edge, resize_to = _resize_target(settings) if settings["do_resize"] else (None, None)
    config = PreprocessConfig(
        pad_color=pad_color(_channels(settings, "image_mean")) if has_padding else None,
        resize_shortest_edge=shortest_edge,
        resize_to=resize_to,
        resample=_resample(settings["resample"]),
        crop_to=_size(settings, "crop_size") if settings["do_center_crop"] else None,
        rescale_factor=_number("rescale_factor", settings["rescale_factor"])
        if settings["do_rescale"]
        else None,
        mean=mean,
        std=_channels(settings, "image_std") if settings["do_normalize"] else None,
    )
    _ = config.output_size  # refuses what has none
    return config


def _resize_target(settings: dict[str, Any]) -> tuple[int | None, tuple[int, int] | None]:
    """Return (shortest_edge, None) or (None, (height, width))."""
    size = settings["size"]
    if isinstance(size, int):
        size = {"shortest_edge": size}
    if isinstance(size, dict):
        given = {key: value for key, value in size.items() if value is not None}
        if set(given) == {"shortest_edge"}:
            return _pixels("size", given["shortest_edge"]), None
        if set(given) != {"height", "width"}:
            raise UnsupportedModelError(
                f"image preprocessing: size with {', '.join(given) or 'nothing in it'} is not "
                "supported; supported are shortest_edge alone, or height and width"
            )
    return None, _size(settings, "size")


def _size(settings: dict[str, Any], key: str) -> tuple[int, int]:
    size = settings.get(key)
    if isinstance(size, int):
        size = (size, size)
    elif isinstance(size, dict):
        size = (size.get("height"), size.get("width"))
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise CheckpointError(
            f"image preprocessing: {key} is {size!r}; it must have a height and a width"
        )
    return _pixels(key, size[0]), _pixels(key, size[1])


def _pixels(key: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MAX_SIDE:
        raise CheckpointError(
            f"image preprocessing: {key} has a side of {value!r}; it must be 1 to 8192 pixels"
        )
    return value


def _resample(code: Any) -> Resample:
    names: tuple[Resample, ...] = get_args(Resample)
    if not isinstance(code, int) or not 0 <= code < len(names):
        raise CheckpointError(
            f"image preprocessing: resample is {code!r}; it must be 0 to 5 "
            f"({', '.join(names)}, as Pillow numbers them)"
        )
    return names[code]


def _channels(settings: dict[str, Any], key: str) -> tuple[float, float, float]:
    values = settings[key]
    values = [values] * 3 if isinstance(values, int | float) else values
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise CheckpointError(
            f"image preprocessing: {key} is {values!r}; it must be three numbers"
        )
    red, green, blue = (_number(key, value) for value in values)
    return red, green, blue


def _number(key: str, value: Any) -> float:
    if type(value) not in (int, float) or not np.isfinite(value):
        raise CheckpointError(f"image preprocessing: {key} is {value!r}; it must be a number")
    return float(value)


def pad_color(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """Return the grey levels of the colour that a processor takes for the mean."""
    red, green, blue = (int(value * 255) for value in mean)
    return red, green, blue
