"""SmolVLM2: what ``idefics3`` is, under a name of its own; videos are not read."""

from __future__ import annotations

import msgspec

from feather_edge.export.families import idefics3
from feather_edge.export.families.idefics3 import read

__all__ = ["INFO", "read"]

INFO = msgspec.structs.replace(
    idefics3.INFO,
    model_type="smolvlm",
    examples=(
        "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    ),
    limits="pictures only, no videos",
)
