"""Reading and judging answers: a box against a box, a word against a word.

A model names places in the picture that it *sees*: padded, resized, cropped. The truth is in
pixels of the picture as it is on disk. The bundle's images say how one leads to the other.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from feather_edge.errors import BundleError, RequestError
from feather_edge.evaluate.boxes import parse_location_tokens
from feather_edge.evaluate.truth_boxes import BOX_TEXT

if TYPE_CHECKING:
    from feather_edge.bundle import Bundle
    from feather_edge.images import ViewGeometry
    from feather_edge.images.geometry import Box

__all__ = ["BoxFormat", "BoxReader", "is_same_word"]

BoxFormat = Literal["location-tokens", "pixels", "0-1", "0-100", "0-1000"]

MIN_IOU = 0.5
"""An answer finds its thing when the boxes overlap at least this much."""

_NUMBER = re.compile(r"(?<![\w.])-?(?:\d+(?:\.\d+)?|\.\d+)")
"""Not what is part of a word, such as the 2 of ``bbox_2d`` in the answers of Qwen2.5-VL."""
_LOCATION_TOKEN = re.compile(r"<loc_?\d+>")


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxReader:
    """Reads the box that an answer names, in one of the formats that models are trained on.

    Attributes:
        box_format: ``location-tokens``: bins of the view; ``0-1``, ``0-100``, ``0-1000``: shares
            of it; ``pixels``: of the view. Always x0, y0, x1, y1, but for location tokens as
            PaliGemma writes them.
        num_bins: location tokens per axis; only for ``location-tokens``.
    """

    box_format: BoxFormat
    num_bins: int = 0

    @classmethod
    def of(cls, bundle: Bundle, box_format: BoxFormat | None = None) -> BoxReader | None:
        """Return the reader of a bundle's answers.

        Args:
            bundle: an opened bundle; its tokenizer says how many location tokens there are.
            box_format: None takes location tokens where the model has them.

        Returns:
            None if no format was given and the model has no location tokens.

        Raises:
            RequestError: if the format is unknown, or asks for tokens that the model lacks.
        """
        if box_format is not None and box_format not in get_args(BoxFormat):
            raise RequestError(
                f"box format {box_format!r} is unknown; choose {', '.join(get_args(BoxFormat))}"
            )
        if box_format is not None and box_format != "location-tokens":
            return cls(box_format=box_format)
        num_bins = _num_location_tokens(bundle)
        if num_bins:
            return cls(box_format="location-tokens", num_bins=num_bins)
        if box_format is None:
            return None
        raise RequestError(
            f"{bundle.path} has no location tokens such as <loc_07> in its vocabulary; choose "
            f"box format pixels, 0-1, 0-100 or 0-1000"
        )

    def read(self, text: str, geometry: ViewGeometry) -> Box | None:
        """Return the box in pixels of the view, or None unless the answer is exactly one box."""
        width, height = geometry.view_size
        if self.box_format == "location-tokens":
            return parse_location_tokens(text, num_bins=self.num_bins, image_size=(height, width))
        boxes = BOX_TEXT.findall(text)  # the 2 of "bbox_2d" is no coordinate
        numbers = [float(n) for n in _NUMBER.findall(boxes[0] if len(boxes) == 1 else text)]
        if len(numbers) != 4:
            return None
        x_unit, y_unit = 1.0, 1.0
        if self.box_format != "pixels":
            whole = float(self.box_format.removeprefix("0-"))
            x_unit, y_unit = width / whole, height / whole
        x0, y0, x1, y1 = numbers
        return (x0 * x_unit, y0 * y_unit, x1 * x_unit, y1 * y_unit)


def is_same_word(said: str, truth: str) -> bool:
    """Return whether an answer is the expected one; case, spaces and a last dot do not matter."""
    return _plain(said) == _plain(truth)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def _num_location_tokens(bundle: Bundle) -> int:
    file = bundle.path / "tokenizer.json"
    try:
        tokenizer = json.loads(file.read_text(encoding="utf-8"))
        known = {token["content"] for token in tokenizer.get("added_tokens", ())}
        vocabulary = tokenizer["model"].get("vocab", ())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{file} cannot be read: {error}; export the bundle again") from error
    if isinstance(vocabulary, dict):
        known.update(vocabulary)
    return sum(_LOCATION_TOKEN.fullmatch(token) is not None for token in known)
