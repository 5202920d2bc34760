"""A bundle: the folder that export writes and a session opens.

::

    bundle/
      manifest.json
      onnx/vision_encoder.onnx, decoder_0.onnx ... and their weights, <graph>.onnx_data
      onnx/embed_tokens.safetensors
      tokenizer.json, tokenizer_config.json, chat_template.jinja ...
      engines/<target>/            what build-engine adds on a device; no part of the manifest

A bundle appears whole or not at all: it is written beside its destination and renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from feather_edge.errors import BundleError
from feather_edge.graphs import DECODER, EMBED_TOKENS_FILE, VISION_ENCODER, GraphSpec
from feather_edge.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    BundleManifest,
    FileRecord,
)
from feather_edge.pruning.schedule import PruningSchedule

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An exported model on disk."""

    path: Path
    manifest: BundleManifest

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open a bundle folder and check that every file it lists is there, at its size.

        Raises:
            BundleError: if the folder is no bundle, was written by another version of the format,
                or misses a file.
        """
        folder = Path(path)
        file = folder / MANIFEST_FILE
        if not file.is_file():
            raise BundleError(
                f"{folder} is not a bundle: it has no {MANIFEST_FILE}; "
                f"make one with 'feather-edge export CHECKPOINT -o {folder}'"
            )
        bundle = cls(path=folder, manifest=_decode(file))
        for name, record in bundle.manifest.files.items():
            bundle._check_file(name, record)
        return bundle

    @property
    def schedule(self) -> PruningSchedule:
        """Where the decoder is split."""
        stages = self.manifest.recipe.stages
        return PruningSchedule(num_layers=self.manifest.decoder.num_layers, stages=stages or ())

    @property
    def vision_encoder(self) -> GraphSpec:
        """Contract of the vision encoder."""
        return self._graph(VISION_ENCODER)

    @property
    def decoders(self) -> tuple[GraphSpec, ...]:
        """Contracts of the decoder's segments, in order."""
        return tuple(
            self._graph(DECODER.format(index)) for index in range(len(self.schedule.segments))
        )

    @property
    def embed_tokens_file(self) -> Path:
        """The safetensors file with the embeddings of the vocabulary."""
        return self.path / EMBED_TOKENS_FILE

    def _graph(self, name: str) -> GraphSpec:
        for graph in self.manifest.graphs:
            if graph.name == name:
                return graph
        raise BundleError(f"{self.path / MANIFEST_FILE} lists no graph {name!r}; export it again")

    def _check_file(self, name: str, record: FileRecord) -> None:
        path = self.path / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BundleError(f"{self.path / MANIFEST_FILE} names a file outside itself: {name!r}")
        if not path.is_file():
            raise BundleError(f"bundle {self.path} misses {name}; export it again")
        size = path.stat().st_size
        if size != record.num_bytes:
            raise BundleError(
                f"{path} has {size} bytes, the manifest says {record.num_bytes}; "
                f"the file is damaged, export the bundle again"
            )


def write_manifest(folder: Path, manifest: BundleManifest) -> None:
    """Write ``manifest.json``, with sizes and hashes of all other files filled in."""
    files = {
        file.relative_to(folder).as_posix(): FileRecord(
            num_bytes=file.stat().st_size, sha256=_sha256(file)
        )
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    complete = msgspec.structs.replace(manifest, files=files)
    text = msgspec.json.format(msgspec.json.encode(complete), indent=2)
    (folder / MANIFEST_FILE).write_bytes(text + b"\n")


@contextlib.contextmanager
def staging_folder(destination: Path, *, force: bool) -> Iterator[Path]:
    """Give an empty folder that becomes ``destination`` when the block ends without an error.

    Raises:
        BundleError: if ``destination`` exists and ``force`` is off, or it exists and is not a
            bundle: a folder of something else is never replaced.
    """
    if destination.exists():
        if not force:
            raise BundleError(f"{destination} already exists; overwrite it with --force")
        is_empty = destination.is_dir() and not any(destination.iterdir())
        if not is_empty and not (destination / MANIFEST_FILE).is_file():
            raise BundleError(
                f"{destination} exists and is not a bundle, so --force will not replace it; "
                f"choose another output"
            )
    staging = destination.parent / f".{destination.name}.partial-{os.getpid()}"
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise BundleError(f"cannot write {destination}: {error.strerror or error}") from error
    try:
        yield staging
        _replace(staging, destination)
    except OSError as error:
        raise BundleError(f"cannot write {destination}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _replace(staging: Path, destination: Path) -> None:
    """Move ``staging`` to ``destination``; the old bundle is set aside first, deleted last."""
    if not destination.exists():
        staging.rename(destination)
        return
    old = destination.parent / f".{destination.name}.old-{os.getpid()}"
    destination.rename(old)
    try:
        staging.rename(destination)
    except OSError:
        old.rename(destination)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _decode(file: Path) -> BundleManifest:
    data = file.read_bytes()
    try:
        version = msgspec.json.decode(data).get("format_version")
        if version != FORMAT_VERSION:
            raise BundleError(
                f"{file} has format version {version!r}; this feather-edge reads version "
                f"{FORMAT_VERSION}, so export the bundle again"
            )
        return msgspec.json.decode(data, type=BundleManifest)
    except (msgspec.MsgspecError, AttributeError, UnicodeDecodeError) as error:
        raise BundleError(f"{file} is not a valid manifest: {error}; export it again") from error


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
