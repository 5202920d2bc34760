"""Reading Hugging Face checkpoints: where they are, what they hold, what they mean."""

from __future__ import annotations

from feather_edge.checkpoint.reader import Checkpoint, TensorView
from feather_edge.checkpoint.source import resolve_checkpoint
from feather_edge.checkpoint.text_config import RopeScaling, TextConfig, text_config
from feather_edge.checkpoint.vision_config import VisionConfig, vision_config

__all__ = [
    "Checkpoint",
    "RopeScaling",
    "TensorView",
    "TextConfig",
    "VisionConfig",
    "resolve_checkpoint",
    "text_config",
    "vision_config",
]
