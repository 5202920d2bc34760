"""How a checkpoint wants pictures that keep their resolution: Qwen2-VL's image processor.

A picture is resized to a multiple of a merge block within a range of pixels, and cut into patches
that the vision encoder takes one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast, get_args

import msgspec

from feather_edge.checkpoint.fields import ConfigFields
from feather_edge.checkpoint.preprocessing import Resample, read_image_processor
from feather_edge.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from pathlib import Path

_SUBJECT = "image preprocessing"
_KIND = "Qwen2VLImageProcessor"

# Class defaults of transformers, which a config file may leave out.
_DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
_LIMITS = {
    "min_pixels": 2**22,
    "max_pixels": 2**26,
    "patch_size": 256,
    "temporal_patch_size": 8,
    "merge_size": 16,
}
_DEFAULT_PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}


class PatchPreprocessConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What happens to a picture before the vision encoder sees its patches, in this order.

    Attributes:
        min_pixels: smallest area of the resized picture.
        max_pixels: largest area of it.
        resample: filter of the resize.
        rescale_factor: what grey levels are multiplied by; None for no rescaling.
        mean: subtracted per channel; None for no normalisation.
        std: divided by, per channel, after the mean.
        patch_size: side of a patch, in pixels.
        temporal_patch_size: frames of a patch; a picture is repeated as often.
        merge_size: patches per side of a block that becomes one visual token.
    """

    min_pixels: int
    max_pixels: int
    resample: Resample = "bicubic"
    rescale_factor: float | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    patch_size: int
    temporal_patch_size: int
    merge_size: int

    def __post_init__(self) -> None:
        for name, largest in _LIMITS.items():
            if not 1 <= getattr(self, name) <= largest:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 to {largest}")
        if self.min_pixels > self.max_pixels:
            raise ValueError(
                f"pictures must have at least {self.min_pixels} and at most {self.max_pixels} "
                f"pixels, which none has"
            )

    @property
    def block_size(self) -> int:
        """Side of what becomes one visual token, in pixels."""
        return self.patch_size * self.merge_size


def read_patch_preprocess_config(folder: Path) -> PatchPreprocessConfig:
    """Return the preprocessing of a checkpoint folder.

    Raises:
        CheckpointError: no file holds it, or a value is no sensible one.
        UnsupportedModelError: it is of a kind that is not supported.
    """
    return patch_preprocess_config(read_image_processor(folder))


def patch_preprocess_config(raw: dict[str, Any]) -> PatchPreprocessConfig:
    """Normalise the settings of an image processor.

    Raises:
        CheckpointError: a value is no sensible one.
        UnsupportedModelError: the kind of image processor is not supported.
    """
    named = raw.get("image_processor_type")
    if str(named).removesuffix("Fast").removesuffix("Pil") != _KIND:
        raise UnsupportedModelError(
            f"{_SUBJECT}: image_processor_type {named!r} is not supported for this family; "
            f"supported is {_KIND}, with or without Fast at the end"
        )
    fields = ConfigFields(_SUBJECT, raw, _DEFAULTS)
    if not fields.get("do_resize"):
        raise UnsupportedModelError(
            f"{_SUBJECT}: do_resize is off, so pictures would have to come in multiples of a "
            f"patch; only do_resize true is supported"
        )
    min_pixels, max_pixels = _pixel_range(raw)
    is_normalised = bool(fields.get("do_normalize"))
    try:
        return PatchPreprocessConfig(
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            resample=_resample(fields.get("resample")),
            rescale_factor=fields.positive("rescale_factor") if fields.get("do_rescale") else None,
            mean=_channels(fields, "image_mean") if is_normalised else None,
            std=_channels(fields, "image_std") if is_normalised else None,
            patch_size=fields.side("patch_size"),
            temporal_patch_size=fields.size("temporal_patch_size"),
            merge_size=fields.size("merge_size"),
        )
    except ValueError as error:
        raise CheckpointError(f"{_SUBJECT}: {error}") from error


def _pixel_range(raw: dict[str, Any]) -> tuple[int, int]:
    """Return the smallest and largest area; older files name both in another way."""
    size = raw.get("size") or {}
    if not isinstance(size, dict):
        raise CheckpointError(f"{_SUBJECT}: size is {size!r}; it must be an object")
    values = {**_DEFAULT_PIXELS, **size}
    for edge, pixels in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")):
        older = raw.get(pixels, None if edge in size else size.get(pixels))
        if older is not None:
            values[edge] = older
    fields = ConfigFields(f"{_SUBJECT}: size", values, {})
    return fields.size("shortest_edge"), fields.size("longest_edge")


def _resample(code: Any) -> Resample:
    names: tuple[Resample, ...] = get_args(Resample)
    if type(code) is not int or not 0 <= code < len(names):
        raise CheckpointError(
            f"{_SUBJECT}: resample is {code!r}; it must be 0 to 5 ({', '.join(names)}, as Pillow "
            f"numbers them)"
        )
    return names[code]


def _channels(fields: ConfigFields, name: str) -> tuple[float, float, float]:
    return cast("tuple[float, float, float]", fields.numbers(name, 3))
