"""Whether a checkpoint is the one that it was, without reading its weights."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["checkpoint_identity"]

READ_PATTERNS = ("*.json", "*.jinja")
WEIGHTS_PATTERN = "*.safetensors"


def checkpoint_identity(folder: Path, *, with_weights: bool = True) -> str:
    """Return one hash of everything that an export reads of a checkpoint folder.

    Settings, tokenizer and template count by what they hold, weights by size and time of the last
    change: two trainings of one model have equal headers, and reading tens of gigabytes takes
    longer than most of what a hash could save.

    Args:
        folder: of the checkpoint.
        with_weights: whether weights count; they need not be there otherwise.
    """
    digest = hashlib.sha256()
    for pattern in READ_PATTERNS:
        for file in sorted(folder.glob(pattern)):
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"{file.name} {content}\n".encode())
    for file in sorted(folder.glob(WEIGHTS_PATTERN)) if with_weights else ():
        status = file.stat()
        digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
