"""Turn one image into the pixels of a vision encoder, exactly as transformers does.

The steps are those of the CLIP, SigLIP and LLaVA image processors of transformers on PIL images:
pad to a square, resize, crop the centre, rescale, normalise. They are kept to the last bit,
because a model that was trained on one resize answers differently on another.
"""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from feather_edge.errors import RequestError
from feather_edge.images.geometry import ViewGeometry

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

    from numpy.typing import NDArray
    from PIL import Image

    from feather_edge.checkpoint.patch_preprocessing import PatchPreprocessConfig
    from feather_edge.checkpoint.preprocessing import PreprocessConfig, Resample

    ImageSource = str | Path | bytes | BinaryIO | Image.Image | np.ndarray

MAX_PIXELS = 2**26
"""Largest image taken, and largest image a resize may make on its way: 8192 x 8192 pixels."""


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


def load_images(images: ImageSource | Sequence[ImageSource]) -> list[Image.Image]:
    """Open one image or a list or tuple of several; see ``load_image``."""
    several: Sequence[ImageSource] = (
        images if isinstance(images, list | tuple) else [cast("ImageSource", images)]
    )
    return [load_image(source) for source in several]


def preprocess(images: Sequence[Image.Image], config: PreprocessConfig) -> np.ndarray:
    """Return the pixel values of images; [num_images, 3, height, width] float32.

    Args:
        images: PIL images; transparency is blended onto white, as transformers does it here.
        config: the steps; (height, width) is its `output_size`.

    Raises:
        RequestError: an image is so elongated that its resize would exceed `MAX_PIXELS`.
    """
    return np.stack([normalise(_geometry(image, config), config) for image in images])


def normalise(
    pixels: NDArray[np.uint8], config: PreprocessConfig | PatchPreprocessConfig
) -> NDArray[np.float32]:
    """Rescale and normalise pixels [..., height, width, 3]; returns [..., 3, height, width]."""
    values: NDArray[Any] = pixels
    if config.rescale_factor is not None:
        # Through float64, as transformers does: one rounding, not two.
        values = (values.astype(np.float64) * config.rescale_factor).astype(np.float32)
    values = values.astype(np.float32)
    if config.mean is not None and config.std is not None:
        values = (values - np.array(config.mean, np.float32)) / np.array(config.std, np.float32)
    return np.ascontiguousarray(np.moveaxis(values, -1, -3))


def resize_to(image: Image.Image, size: tuple[int, int], resample: Resample) -> Image.Image:
    """Resize to ``size`` (width, height) in RGB; transparency is blended onto white."""
    from PIL import Image

    return to_rgb(image).resize(size, Image.Resampling[resample.upper()])


def model_view(image: Image.Image, config: PreprocessConfig) -> Image.Image:
    """Return the picture the model sees: padded, resized and cropped, before it is normalised.

    Visual tokens divide this picture into a raster, so kept tokens are drawn over it.

    Raises:
        RequestError: see `preprocess`.
    """
    from PIL import Image

    return Image.fromarray(_geometry(image, config))


def view_geometry(size: tuple[int, int], config: PreprocessConfig) -> ViewGeometry:
    """Return where a picture of ``size`` (width, height) lies in the picture the model sees.

    Raises:
        RequestError: see `preprocess`.
    """
    shift, padded = (0, 0), size
    if config.pad_color is not None:
        shift, padded = _pad_offset(size), (max(size), max(size))
    resized = _resized_size(padded, config)
    crop, view = (0, 0), resized
    if config.crop_to is not None:
        height, width = config.crop_to
        crop = (_crop_start(resized[0], width), _crop_start(resized[1], height))
        view = (width, height)
    scale = (resized[0] / padded[0], resized[1] / padded[1])
    offset = (shift[0] * scale[0] - crop[0], shift[1] * scale[1] - crop[1])
    return ViewGeometry(scale=scale, offset=offset, view_size=view)


def _geometry(image: Image.Image, config: PreprocessConfig) -> np.ndarray:
    """Pad, resize and crop: [height, width, 3] uint8."""
    image = to_rgb(image)
    if config.pad_color is not None:
        image = _pad_to_square(image, config.pad_color)
    pixels = np.asarray(_resize(image, config))
    return pixels if config.crop_to is None else _center_crop(pixels, config.crop_to)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image in RGB, transparency blended onto white, as transformers does it."""
    from PIL import Image

    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _pad_to_square(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    from PIL import Image

    side = max(image.size)
    check_pixels("image padded to a square", (side, side))
    square = Image.new("RGB", (side, side), color)
    square.paste(image, _pad_offset(image.size))
    return square


def _pad_offset(size: tuple[int, int]) -> tuple[int, int]:
    """Return where the picture's corner is in its padded square."""
    side = max(size)
    return (side - size[0]) // 2, (side - size[1]) // 2


def _resize(image: Image.Image, config: PreprocessConfig) -> Image.Image:
    if config.resize_to is None and config.resize_shortest_edge is None:
        return image
    return resize_to(image, _resized_size(image.size, config), config.resample)


def _resized_size(size: tuple[int, int], config: PreprocessConfig) -> tuple[int, int]:
    """Return (width, height) after the resize of a picture of ``size`` (width, height)."""
    if config.resize_to is not None:
        height, width = config.resize_to
        return width, height
    if config.resize_shortest_edge is None:
        return size
    shortest_edge = config.resize_shortest_edge
    longest_edge = int(shortest_edge * max(size) / min(size))
    is_upright = size[0] <= size[1]
    resized = (shortest_edge, longest_edge) if is_upright else (longest_edge, shortest_edge)
    check_pixels(f"image of {size[0]} x {size[1]} pixels, resized for the model,", resized)
    return resized


def _center_crop(pixels: np.ndarray, crop_to: tuple[int, int]) -> np.ndarray:
    """Cut [height, width, 3] from the centre; where it is too small, zeros surround it."""
    for axis, size in enumerate(crop_to):
        extent = pixels.shape[axis]
        start = _crop_start(extent, size)
        if extent < size:
            before = -start
            padding = [(0, 0)] * 3
            padding[axis] = (before, size - extent - before)
            pixels = np.pad(pixels, padding)
        else:
            pixels = pixels.take(range(start, start + size), axis=axis)
    return pixels


def _crop_start(extent: int, size: int) -> int:
    """Return where a centre crop of ``size`` starts; negative where zeros go before."""
    return (extent - size) // 2  # an odd row or column of zeros goes before


def _upright_rgb(subject: str, image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    check_pixels(subject, image.size)
    return ImageOps.exif_transpose(image).convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    from PIL import Image

    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or array.size == 0:
        raise RequestError(
            f"image array has shape {list(array.shape)} and dtype {array.dtype}; it must be "
            "[height, width, 3] of uint8, in RGB order"
        )
    check_pixels("image array", (array.shape[1], array.shape[0]))
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


def check_pixels(subject: str, size: tuple[int, int]) -> None:
    """Refuse what has more than `MAX_PIXELS` pixels.

    Raises:
        RequestError: naming ``subject`` and its ``size`` (width, height).
    """
    if size[0] * size[1] > MAX_PIXELS:
        raise RequestError(_too_large(subject, f"{size[0]} x {size[1]} pixels"))


def _too_large(subject: str, seen: str) -> str:
    return f"{subject} has {seen}; at most {MAX_PIXELS} are allowed: scale it down or crop it"
