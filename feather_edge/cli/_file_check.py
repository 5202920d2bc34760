"""Every file of a bundle against its hash, and what is said of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from feather_edge.cli._options import emit_json
from feather_edge.cli._progress import progress_bar

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_files"]


def check_files(folder: Path, *, as_json: bool) -> None:
    """Read all of a bundle and print what was read.

    Raises:
        BundleError: naming the first file that was altered.
    """
    from feather_edge.bundle import Bundle

    bundle = Bundle.open(folder)
    with progress_bar() as draw:
        num_bytes = bundle.check_files(on_progress=draw)
    num_files = len(bundle.manifest.files)
    if as_json:
        emit_json({"bundle": str(folder), "num_files": num_files, "num_bytes": num_bytes})
    else:
        click.echo(f"{folder}: {num_files} files, {num_bytes} bytes, all as they were exported")
