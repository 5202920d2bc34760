"""Qwen2.5-VL: windows of attention in the vision encoder, a Qwen2 decoder with M-RoPE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from feather_edge.export.families import FamilyInfo, FamilyModel
from feather_edge.export.families._qwen_vl import IMAGES, LIMITS, read_qwen_vl

if TYPE_CHECKING:
    from feather_edge.checkpoint.reader import Checkpoint

INFO = FamilyInfo(
    model_type="qwen2_5_vl",
    examples=("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
    towers=("qwen2_5_vl_vision",),
    decoders=("qwen2_5_vl_text",),
    images=IMAGES,
    limits=LIMITS,
)


def read(checkpoint: Checkpoint) -> FamilyModel:
    """Return a Qwen2.5-VL checkpoint as a ``FamilyModel``; see ``families.read_family``."""
    return read_qwen_vl(checkpoint, text_type="qwen2_5_vl_text", vision_type="qwen2_5_vl_vision")
