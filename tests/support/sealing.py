"""Bundles edited by hand and sealed again, for tests of what lies behind the seal."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import TYPE_CHECKING, Any

import msgspec

from feather_edge.errors import FeatherEdgeError
from feather_edge.manifest import MANIFEST_FILE, BundleManifest, manifest_sha256

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["edit_manifest", "seal_files"]


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest of a bundle; its own hash is made to fit where it still parses."""
    file = folder / MANIFEST_FILE
    document = json.loads(file.read_text())
    change(document)
    with contextlib.suppress(msgspec.ValidationError, FeatherEdgeError):
        document["sha256"] = manifest_sha256(msgspec.convert(document, BundleManifest))
    file.write_text(json.dumps(document))


def seal_files(folder: Path) -> None:
    """Write the sizes and hashes that the files of a bundle have now into its manifest."""

    def update(document: dict[str, Any]) -> None:
        for name, record in document["files"].items():
            content = (folder / name).read_bytes()
            record["num_bytes"] = len(content)
            record["sha256"] = hashlib.sha256(content).hexdigest()

    edit_manifest(folder, update)
