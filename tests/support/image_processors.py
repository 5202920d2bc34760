"""Image processors of transformers that preprocessing is compared with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

if TYPE_CHECKING:
    from transformers.image_processing_backends import PilBackend

PROCESSORS = {
    "clip": CLIPImageProcessorPil(),
    "clip-small": CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=28),
    "clip-crop-larger": CLIPImageProcessorPil(
        size={"shortest_edge": 31}, crop_size={"height": 57, "width": 30}
    ),
    "clip-square": CLIPImageProcessorPil(size={"height": 30, "width": 31}, do_center_crop=False),
    "clip-raw": CLIPImageProcessorPil(do_normalize=False, do_rescale=False),
    "clip-unscaled": CLIPImageProcessorPil(do_rescale=False, resample=2),
    "clip-crop-only": CLIPImageProcessorPil(do_resize=False, crop_size=24),
    "siglip": SiglipImageProcessorPil(),
    "siglip-oblong": SiglipImageProcessorPil(size={"height": 27, "width": 56}, resample=0),
    "llava": LlavaImageProcessorPil(size={"shortest_edge": 56}, crop_size=56),
    "llava-pad": LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": 56}, crop_size=56, resample=1
    ),
}


def raw_config(processor: PilBackend) -> dict[str, Any]:
    """Return what save_pretrained writes to preprocessor_config.json."""
    document: dict[str, Any] = json.loads(processor.to_json_string())
    return document
