"""Copies of a checkpoint with something changed."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

__all__ = ["edited_checkpoint"]


def edited_checkpoint(
    source: Path,
    folder: Path,
    *,
    tensors: Callable[[dict[str, np.ndarray]], object] | None = None,
    config: Callable[[dict[str, Any]], object] | None = None,
) -> Path:
    """Copy ``source`` to ``folder``; the functions change tensors and config.json in place."""
    shutil.copytree(source, folder)
    if tensors is not None:
        loaded = load_file(folder / "model.safetensors")
        tensors(loaded)
        save_file(loaded, folder / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        read = json.loads((folder / "config.json").read_text())
        config(read)
        (folder / "config.json").write_text(json.dumps(read))
    return folder
