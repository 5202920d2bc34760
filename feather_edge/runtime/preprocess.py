"""Turn images into the pixel tensor of the vision encoder, exactly as transformers does.

The steps are those of the CLIP, SigLIP and LLaVA image processors of transformers on PIL images:
pad to a square, resize, crop the centre, rescale, normalise. They are kept to the last bit,
because a model that was trained on one resize answers differently on another.
"""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec
import numpy as np

from feather_edge.checkpoint.reader import read_json_object
from feather_edge.errors import CheckpointError, RequestError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

    from PIL import Image

    ImageSource = str | Path | bytes | BinaryIO | Image.Image | np.ndarray

MAX_PIXELS = 2**26
"""Largest image taken, and largest image a resize may make on its way: 8192 x 8192 pixels."""

PREPROCESSOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"

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
}
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

    transformers 5 nests it in processor_config.json, and reads that before
    preprocessor_config.json where both exist; so does this.

    Raises:
        CheckpointError: neither file holds it, or a value is no sensible one.
        UnsupportedModelError: it is of a kind that is not supported.
    """
    for name in (PROCESSOR_FILE, PREPROCESSOR_FILE):
        if (folder / name).is_file():
            raw = read_json_object(folder / name)
            if name == PREPROCESSOR_FILE or "image_processor" in raw:
                return preprocess_config(raw)
    raise CheckpointError(
        f"{folder} does not say how to preprocess images: it has no {PREPROCESSOR_FILE} and no "
        f"{PROCESSOR_FILE} with an image_processor; copy the file from the original checkpoint"
    )


def preprocess_config(raw: dict[str, Any]) -> PreprocessConfig:
    """Normalise the content of preprocessor_config.json or processor_config.json.

    Raises:
        CheckpointError: a value is no sensible one.
        UnsupportedModelError: the kind of image processor is not supported.
    """
    raw = raw.get("image_processor", raw)
    named = raw.get("image_processor_type") or raw.get("feature_extractor_type") or "none"
    kind = _OLD_NAMES.get(named, str(named).removesuffix("Fast").removesuffix("Pil"))
    if kind not in _DEFAULTS:
        raise UnsupportedModelError(
            f"image preprocessing: image_processor_type {named!r} is not supported; supported "
            f"are {', '.join(_DEFAULTS)}, each with or without Fast at the end"
        )
    # transformers takes a null for "not given".
    given = {key: value for key, value in raw.items() if value is not None}
    settings = {**_DEFAULTS[kind], **given}
    if settings["do_pad"] and kind != "LlavaImageProcessor":
        raise UnsupportedModelError(f"image preprocessing: do_pad of {kind} is not supported")
    mean = _channels(settings, "image_mean") if settings["do_normalize"] else None
    shortest_edge, resize_to = _resize_target(settings) if settings["do_resize"] else (None, None)
    config = PreprocessConfig(
        pad_color=_pad_color(_channels(settings, "image_mean")) if settings["do_pad"] else None,
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


def load_image(source: ImageSource) -> Image.Image:
    """Open an image, turn it upright as its EXIF says, and convert it to RGB.

    As in transformers' load_image, transparency is dropped, not blended, and grey levels above
    255 of a 16-bit image become 255.

    Args:
        source: a path, the bytes of an image file, a binary file object, a PIL image, or an array
            [height, width, 3] of uint8 in RGB order.

    Raises:
        RequestError: it is no image, cannot be decoded, or has more than `MAX_PIXELS` pixels.
    """
    from PIL import Image

    if isinstance(source, np.ndarray):
        return _from_array(source)
    subject = f"image {source}" if isinstance(source, str | Path) else "image"
    try:
        if isinstance(source, Image.Image):
            return _upright_rgb(subject, source)
        with warnings.catch_warnings():
            # Pillow warns above its own limit; ours is lower and refuses.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(_stream(source))
        with opened:
            return _upright_rgb(subject, opened)
    except RequestError:
        raise
    except FileNotFoundError as error:
        raise RequestError(f"{subject} does not exist; give a PNG, JPEG or WebP file") from error
    except Image.DecompressionBombError as error:
        raise RequestError(_too_large(subject, "hundreds of megapixels")) from error
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        raise RequestError(
            f"{subject} cannot be read as an image ({type(error).__name__}: {error}); allowed are "
            "the formats that Pillow reads, such as PNG, JPEG and WebP"
        ) from error


def preprocess(images: Sequence[Image.Image], config: PreprocessConfig) -> np.ndarray:
    """Return the pixel values of images; [num_images, 3, height, width] float32.

    Args:
        images: PIL images; transparency is blended onto white, as transformers does it here.
        config: the steps; (height, width) is its `output_size`.

    Raises:
        RequestError: an image is so elongated that its resize would exceed `MAX_PIXELS`.
    """
    if not images:
        return np.empty((0, 3, *config.output_size), np.float32)
    return np.stack([_preprocess_one(image, config) for image in images])


def model_view(image: Image.Image, config: PreprocessConfig) -> Image.Image:
    """Return the picture the model sees: padded, resized and cropped, before it is normalised.

    Visual tokens divide this picture into a raster, so kept tokens are drawn over it.

    Raises:
        RequestError: see `preprocess`.
    """
    from PIL import Image

    return Image.fromarray(_geometry(image, config))


def _geometry(image: Image.Image, config: PreprocessConfig) -> np.ndarray:
    """Pad, resize and crop: [height, width, 3] uint8."""
    image = _to_rgb(image)
    if config.pad_color is not None:
        image = _pad_to_square(image, config.pad_color)
    pixels = np.asarray(_resize(image, config))
    return pixels if config.crop_to is None else _center_crop(pixels, config.crop_to)


def _preprocess_one(image: Image.Image, config: PreprocessConfig) -> np.ndarray:
    pixels = _geometry(image, config)
    if config.rescale_factor is not None:
        # Through float64, as transformers does: one rounding, not two.
        pixels = (pixels.astype(np.float64) * config.rescale_factor).astype(np.float32)
    pixels = pixels.astype(np.float32)
    if config.mean is not None and config.std is not None:
        pixels = (pixels - np.array(config.mean, np.float32)) / np.array(config.std, np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))  # [3, height, width]


def _to_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _pad_to_square(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    from PIL import Image

    side = max(image.size)
    _check_pixels("image padded to a square", (side, side))
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _resize(image: Image.Image, config: PreprocessConfig) -> Image.Image:
    from PIL import Image

    if config.resize_to is not None:
        height, width = config.resize_to
    elif config.resize_shortest_edge is not None:
        shortest_edge = config.resize_shortest_edge
        longest_edge = int(shortest_edge * max(image.size) / min(image.size))
        upright = image.width <= image.height
        height, width = (longest_edge, shortest_edge) if upright else (shortest_edge, longest_edge)
        subject = f"image of {image.width} x {image.height} pixels, resized for the model,"
        _check_pixels(subject, (width, height))
    else:
        return image
    return image.resize((width, height), Image.Resampling[config.resample.upper()])


def _center_crop(pixels: np.ndarray, crop_to: tuple[int, int]) -> np.ndarray:
    """Cut [height, width, 3] from the centre; where it is too small, zeros surround it."""
    for axis, size in enumerate(crop_to):
        extent = pixels.shape[axis]
        if extent < size:
            before = -((extent - size) // 2)  # the odd row or column goes before
            padding = [(0, 0)] * 3
            padding[axis] = (before, size - extent - before)
            pixels = np.pad(pixels, padding)
        else:
            start = (extent - size) // 2
            pixels = pixels.take(range(start, start + size), axis=axis)
    return pixels


def _upright_rgb(subject: str, image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    _check_pixels(subject, image.size)
    return ImageOps.exif_transpose(image).convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    from PIL import Image

    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or array.size == 0:
        raise RequestError(
            f"image array has shape {list(array.shape)} and dtype {array.dtype}; it must be "
            "[height, width, 3] of uint8, in RGB order"
        )
    _check_pixels("image array", (array.shape[1], array.shape[0]))
    return Image.fromarray(np.ascontiguousarray(array))


def _stream(source: object) -> Any:
    if isinstance(source, bytes | bytearray | memoryview):
        return BytesIO(source)
    if isinstance(source, str | Path) or hasattr(source, "read"):
        return source
    raise RequestError(
        f"image is a {type(source).__name__}; allowed are a path, the bytes of an image file, a "
        "binary file object, a PIL image, or a numpy array [height, width, 3] of uint8"
    )


def _check_pixels(subject: str, size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise RequestError(_too_large(subject, f"{size[0]} x {size[1]} pixels"))


def _too_large(subject: str, seen: str) -> str:
    return f"{subject} has {seen}; at most {MAX_PIXELS} are allowed: scale it down or crop it"


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
    if type(value) is not int or not 1 <= value <= 2**13:
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


def _pad_color(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    red, green, blue = (int(value * 255) for value in mean)
    return red, green, blue
