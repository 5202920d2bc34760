"""Qwen3-VL: stretched learned positions, DeepStack, a Qwen3 decoder with interleaved M-RoPE.

DeepStack adds planes of visual features of earlier vision layers to the hidden states after the
first decoder layers, so visual tokens can only be pruned after the last of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from feather_edge.export.families import FamilyInfo, FamilyModel
from feather_edge.export.families._qwen_vl import IMAGES, LIMITS, read_qwen_vl

if TYPE_CHECKING:
    from feather_edge.checkpoint.reader import Checkpoint

INFO = FamilyInfo(
    model_type="qwen3_vl",
    examples=("Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"),
    towers=("qwen3_vl_vision",),
    decoders=("qwen3_vl_text",),
    images=IMAGES,
    limits=f"{LIMITS}; no pruning stage before the last layer that DeepStack adds to",
)


def read(checkpoint: Checkpoint) -> FamilyModel:
    """Return a Qwen3-VL checkpoint as a ``FamilyModel``; see ``families.read_family``."""
    return read_qwen_vl(checkpoint, text_type="qwen3_vl_text", vision_type="qwen3_vl_vision")
