"""A bundle: the folder that export writes and a session opens.

::

    bundle/
      manifest.json
      onnx/vision_encoder.onnx, decoder_0.onnx ... and their weights, <graph>.onnx_data
      onnx/embed_tokens.safetensors
      tokenizer.json, tokenizer_config.json, chat_template.jinja ...
      engines/<target>/            what build-engine adds on a device; no part of the manifest
      calibration/<backend>-<device>.json    what tune measures on a device; likewise
      verify.json                  what verify found, and of what; likewise
      deploy/, report.html         what deploy records of its stages; likewise

A bundle appears whole or not at all: it is written beside its destination and renamed, see
``feather_edge.staging``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from feather_edge import strict_json
from feather_edge.errors import BundleError
from feather_edge.graphs import (
    DECODER,
    EMBED_TOKENS_FILE,
    OPSETS,
    VISION_ENCODER,
    GraphSpec,
    decoder_spec,
)
from feather_edge.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    RECEIPT_FILE,
    BundleManifest,
    FileRecord,
    listed_graphs,
    manifest_sha256,
)
from feather_edge.pruning.schedule import PruningSchedule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HASHED_BYTES = 2**25
"""Files up to this size, which is all but the weights, are hashed whenever a bundle is opened."""

MAX_MANIFEST_BYTES = 2**24
UNLISTED = (MANIFEST_FILE, RECEIPT_FILE, "engines", "calibration", "deploy", "report.html")
"""What the manifest does not list: itself, and what commands add, which has forms of its own."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An exported model on disk."""

    path: Path
    manifest: BundleManifest

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open a bundle folder and check it, as docs/bundle-format.md demands.

        Every file must be listed, in its place and of its size; files up to ``HASHED_BYTES`` must
        have their hash too. ``check_files`` reads the rest.

        Raises:
            BundleError: if the folder is no bundle, was written by another version of the format,
                or was altered.
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
            bundle._check_file(name, record, max_hashed=HASHED_BYTES)
        bundle._check_nothing_else()
        bundle._check_graphs()
        return bundle

    def check_files(self, *, on_progress: Callable[[str, int, int], None] | None = None) -> int:
        """Read every file of the bundle and compare it with its hash; returns the bytes read.

        Args:
            on_progress: called with a file's name, and with the bytes done and the bytes to do.

        Raises:
            BundleError: naming the first file that was altered.
        """
        total = sum(record.num_bytes for record in self.manifest.files.values())
        num_done = 0
        for name, record in self.manifest.files.items():
            self._check_file(name, record, max_hashed=record.num_bytes)
            num_done += record.num_bytes
            if on_progress is not None:
                on_progress(name, num_done, total)
        return total

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

    def inside(self, name: str) -> Path:
        """Return the path of a file of the bundle, which need not exist.

        Raises:
            BundleError: if it is not within the bundle, or a link leads it out.
        """
        path = self.path / name
        if not is_inside(path, self.path):
            raise BundleError(
                f"{path} leads out of the bundle, to {path.resolve()}; nothing outside it is "
                f"opened, so remove the link"
            )
        return path

    def _graph(self, name: str) -> GraphSpec:
        return next(graph for graph in self.manifest.graphs if graph.name == name)

    def _check_file(self, name: str, record: FileRecord, *, max_hashed: int) -> None:
        path = self.path / name
        if not is_inside(path, self.path):
            raise BundleError(f"{self.path / MANIFEST_FILE} names a file outside itself: {name!r}")
        if not path.is_file():
            raise BundleError(f"bundle {self.path} misses {name}; export it again")
        size = path.stat().st_size
        if size != record.num_bytes:
            raise BundleError(
                f"{path} has {size} bytes, the manifest says {record.num_bytes}; "
                f"the file is damaged, export the bundle again"
            )
        if size <= max_hashed and _sha256(path) != record.sha256:
            raise BundleError(
                f"{path} is not the file that was exported (its SHA-256 differs); it is damaged "
                f"or was edited, export the bundle again"
            )

    def _check_nothing_else(self) -> None:
        """Refuse links that lead out, and files that nothing accounts for.

        What lies in a bundle is part of it, also what commands have added.
        """
        for path in sorted(self.path.rglob("*")):
            name = path.relative_to(self.path)
            self.inside(name.as_posix())
            if path.is_dir() or name.parts[0] in UNLISTED:
                continue
            if name.as_posix() not in self.manifest.files:
                raise BundleError(
                    f"{path} is no part of the bundle: its manifest does not list it; move it away"
                )

    def _check_graphs(self) -> None:
        """Refuse graphs that are not those that the schedule asks for, or have no file."""
        wanted = [VISION_ENCODER]
        wanted += [DECODER.format(index) for index in range(len(self.schedule.segments))]
        names = [graph.name for graph in self.manifest.graphs]
        if names != wanted:
            raise BundleError(
                f"{self.path / MANIFEST_FILE} lists the graphs {', '.join(names)}, but its stages "
                f"make them {', '.join(wanted)}; export it again"
            )
        for graph in listed_graphs(tuple(self._contracts()), self.manifest.recipe):
            if graph not in self.manifest.graphs:
                raise BundleError(
                    f"{self.path / MANIFEST_FILE} gives {graph.name} another contract than its "
                    f"decoder's sizes do; export it again"
                )
        for graph in self.manifest.graphs:
            for file in (EMBED_TOKENS_FILE, *(form.file for form in graph.forms)):
                if file not in self.manifest.files:
                    raise BundleError(
                        f"{self.path / MANIFEST_FILE} lists no file {file}; export it again"
                    )

    def _contracts(self) -> Iterator[GraphSpec]:
        """Yield what the sizes of the decoder make the contracts of its segments."""
        vision, *decoders = self.manifest.graphs
        width = self.manifest.decoder.hidden_size
        if not vision.inputs or any(t.shape[1:] != (width,) for t in vision.outputs):
            raise BundleError(
                f"{self.path / MANIFEST_FILE} gives {vision.name} no inputs, or outputs of "
                f"another width than the decoder's {width}; export it again"
            )
        segments = self.schedule.segments
        for index, (segment, graph) in enumerate(zip(segments, decoders, strict=True)):
            opsets = {form.opset for form in graph.forms}
            if not graph.inputs or not opsets or not opsets <= set(OPSETS):
                raise BundleError(
                    f"{self.path / MANIFEST_FILE} gives {graph.name} no inputs, or forms of other "
                    f"opsets than {', '.join(map(str, OPSETS))}; export it again"
                )
            yield decoder_spec(
                index,
                segment.layers,
                self.manifest.decoder,
                is_last=segment == segments[-1],
                dtype=graph.inputs[0].dtype,
                opsets=tuple(form.opset for form in graph.forms),
                num_planes=len(vision.outputs) - 1,
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
    complete = msgspec.structs.replace(complete, sha256=manifest_sha256(complete))
    (folder / MANIFEST_FILE).write_bytes(strict_json.dumps(complete))


def _decode(file: Path) -> BundleManifest:
    try:
        manifest = strict_json.read_record(
            file, BundleManifest, max_bytes=MAX_MANIFEST_BYTES, format_version=FORMAT_VERSION
        )
    except strict_json.StrictJSONError as error:
        raise BundleError(f"{file} is not a valid manifest: {error}; export it again") from error
    if manifest.sha256 != manifest_sha256(manifest):
        raise BundleError(
            f"{file} is not as it was written (its SHA-256 differs); it is damaged or was "
            f"edited, export the bundle again"
        )
    return manifest


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path lies in a folder and no link leads it out."""
    if ".." in path.parts or not path.is_relative_to(folder):
        return False
    return path.resolve().is_relative_to(folder.resolve())


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
