"""The checkpoint of the model that ships with the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import feather_edge

if TYPE_CHECKING:
    from support.bundles import BundleFactory

__all__ = ["shipped_checkpoint"]

FOLDER = Path(feather_edge.__file__).parent / "assets" / "scene_vlm"


def shipped_checkpoint(bundles: BundleFactory) -> Path:
    """Return the folder of the shipped model; where a checkout lacks it, one of its layout."""
    if FOLDER.is_dir():
        return FOLDER
    return bundles.checkpoint(
        num_layers=8,
        image_size=112,
        patch_size=8,
        hidden_size=128,
        intermediate_size=352,
        head_dim=32,
        max_position_embeddings=1024,
    )
