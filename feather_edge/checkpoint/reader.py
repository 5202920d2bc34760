"""Read a Hugging Face checkpoint folder: its config and its tensors, one at a time.

Only safetensors files are read. A tensor is a view into the memory-mapped file: reading one costs
its own pages and nothing else, so a checkpoint larger than memory can be walked through. The
header of every file is checked against the file's size before any tensor is handed out.
"""

from __future__ import annotations

import difflib
import json
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

import ml_dtypes
import numpy as np

from feather_edge import strict_json
from feather_edge.checkpoint.packed import PackedFormat, read_packed_format
from feather_edge.errors import CheckpointError, UnsupportedModelError

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# The safetensors format caps its header at 100 MB, so that a lying length cannot exhaust memory.
_MAX_HEADER_BYTES = 100_000_000
_LENGTH_BYTES = 8
_PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}

_CONFIG_DTYPES = {"bfloat16": _DTYPES["BF16"], "float16": _DTYPES["F16"]}
"""As a config names them; anything else counts as float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorView:
    """A tensor in a safetensors file, not read yet.

    Attributes:
        name: the tensor's name in the checkpoint.
        shape: its dims.
        dtype: numpy data type; bfloat16 and float8 are those of ml_dtypes.
        file: the safetensors file that holds it.
        offset: of its first byte, from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    file: Path
    offset: int

    @property
    def nbytes(self) -> int:
        """Size of the tensor in the file, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Return the tensor as a read-only view of the memory-mapped file, shape `shape`."""
        if self.nbytes == 0:  # an empty range cannot be mapped
            return np.empty(self.shape, self.dtype)
        mapped = np.memmap(
            self.file, dtype=self.dtype, mode="r", offset=self.offset, shape=self.shape
        )
        return mapped.view(np.ndarray)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """An opened checkpoint folder; made with `Checkpoint.open`.

    It holds no file handle between calls, so there is nothing to close.

    Attributes:
        path: the folder.
        config: config.json as it is.
        generation_config: generation_config.json as it is; empty if there is none.
        packed: how dense layers are packed, where they are quantised.
        has_weights: whether there are tensors; a plan needs none, see ``plan``.
    """

    path: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    packed: PackedFormat | None
    _tensors: dict[str, TensorView]
    has_weights: bool = True

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the configs and every tensor's place; check all headers, read no tensor.

        Args:
            folder: a Hugging Face folder with config.json and safetensors weights.

        Raises:
            CheckpointError: the folder or a file in it is missing, damaged or inconsistent.
            UnsupportedModelError: it needs code of its own, or its weights are quantised in a
                way that cannot be taken over.
        """
        return cls._read(folder, needs_weights=True)

    @classmethod
    def plan(cls, folder: Path) -> Checkpoint:
        """Open a folder that may have no weights yet: what is asked for then is taken as given.

        Raises:
            CheckpointError: as of ``open``, missing weights aside.
            UnsupportedModelError: as of ``open``.
        """
        return cls._read(folder, needs_weights=False)

    @classmethod
    def _read(cls, folder: Path, *, needs_weights: bool) -> Checkpoint:
        if not folder.is_dir():
            state = "is a file" if folder.exists() else "does not exist"
            raise CheckpointError(
                f"checkpoint folder {folder} {state}; give a folder with {CONFIG_FILE} and "
                f"{WEIGHTS_FILE}"
            )
        if not (folder / CONFIG_FILE).is_file():
            raise CheckpointError(
                f"{folder} has no {CONFIG_FILE}; give a Hugging Face checkpoint folder, as "
                "written by save_pretrained"
            )
        config = read_json_object(folder / CONFIG_FILE)
        _refuse_unsupported(folder, config)
        generation = folder / GENERATION_CONFIG_FILE
        has_weights = needs_weights or _has_weights(folder)
        return cls(
            path=folder,
            config=config,
            generation_config=read_json_object(generation) if generation.is_file() else {},
            packed=read_packed_format(config),
            _tensors=_find_tensors(folder) if has_weights else {},
            has_weights=has_weights,
        )

    def planned(self, name: str, shape: tuple[int, ...]) -> TensorView:
        """Return a view as of a tensor that is not here yet; it cannot be read."""
        text = self.config.get("text_config")
        parts = [self.config, *([text] if isinstance(text, dict) else [])]
        given = (part.get(key) for part in parts for key in ("dtype", "torch_dtype"))
        dtype = next((name for name in given if isinstance(name, str)), "")
        return TensorView(
            name=name,
            shape=shape,
            dtype=_CONFIG_DTYPES.get(dtype, np.dtype(np.float32)),
            file=self.path / WEIGHTS_FILE,
            offset=0,
        )

    def names(self) -> tuple[str, ...]:
        """Return the names of all tensors, sorted."""
        return tuple(sorted(self._tensors))

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def tensor(self, name: str) -> TensorView:
        """Return the tensor called `name`, without reading it.

        Raises:
            CheckpointError: there is no such tensor; the message lists the nearest names.
        """
        if name not in self._tensors:
            nearest = difflib.get_close_matches(name, self._tensors, n=3)
            hint = f"; nearest names: {', '.join(nearest)}" if nearest else ""
            raise CheckpointError(f"{self.path} has no tensor {name}{hint}")
        return self._tensors[name]


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file whose top level must be an object.

    Raises:
        CheckpointError: the file cannot be read, is no JSON, or holds no object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is no valid JSON: {error}; copy it again") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} holds a JSON {type(document).__name__}, not an object")
    return document


def _refuse_unsupported(folder: Path, config: dict[str, Any]) -> None:
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    if any("auto_map" in part for part in parts):
        raise UnsupportedModelError(
            f"{folder / CONFIG_FILE} has auto_map: the model needs Python code from its own "
            "folder, which is never run; use a checkpoint of a model_type that transformers has"
        )


def _has_weights(folder: Path) -> bool:
    # An index alone is what a plan fetches of the hub.
    return any(file.suffix == ".safetensors" for file in folder.iterdir())


def _find_tensors(folder: Path) -> dict[str, TensorView]:
    if (folder / WEIGHTS_FILE).is_file():
        return read_tensors(folder / WEIGHTS_FILE)
    if (folder / INDEX_FILE).is_file():
        return _read_shards(folder / INDEX_FILE)
    pickles = sorted(file.name for pattern in _PICKLE_PATTERNS for file in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} has its weights only as pickle ({pickles[0]}), which can run code when "
            "loaded and is never opened here; convert it where you trust it: load it with "
            "transformers' from_pretrained and write it with save_pretrained, which makes "
            f"{WEIGHTS_FILE}"
        )
    raise CheckpointError(f"{folder} has no weights: neither {WEIGHTS_FILE} nor {INDEX_FILE}")


def _read_shards(index: Path) -> dict[str, TensorView]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) for file in weight_map.values()
    ):
        raise CheckpointError(f"{index}: weight_map must map tensor names to file names")
    shards = {file: read_tensors(_shard_path(index, file)) for file in set(weight_map.values())}
    tensors = {}
    for name, file in weight_map.items():
        if name not in shards[file]:
            raise CheckpointError(
                f"{index} says tensor {name} is in {file}, which does not hold it; "
                "index and shards are of different checkpoints: download both again"
            )
        tensors[name] = shards[file][name]
    return tensors


def _shard_path(index: Path, file: str) -> Path:
    # A hub cache links its files elsewhere, which is fine; it is the *name* that must stay inside.
    relative = PurePosixPath(file.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts or ":" in file or not relative.parts:
        raise CheckpointError(
            f"{index} names a file outside its folder: {file!r}; shards must be beside the index"
        )
    path = index.parent / relative
    if not path.is_file():
        raise CheckpointError(f"{index} names shard {file}, which is missing; download it again")
    return path


def read_tensors(file: Path) -> dict[str, TensorView]:
    """Parse and check the header of one safetensors file."""
    try:
        file_size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            if file_size < _LENGTH_BYTES or length > min(
                file_size - _LENGTH_BYTES, _MAX_HEADER_BYTES
            ):
                raise CheckpointError(
                    f"{file} is truncated or no safetensors file: its header should have "
                    f"{length} bytes, the file has {file_size}; download it again"
                )
            header = _parse_header(file, stream.read(length))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    start = _LENGTH_BYTES + length
    tensors = {
        name: _tensor_view(file, name, entry, start=start) for name, entry in header.items()
    }
    _check_coverage(file, tensors, start=start, file_size=file_size)
    return tensors


def _parse_header(file: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = strict_json.loads(raw)
    except strict_json.StrictJSONError as error:
        raise CheckpointError(
            f"{file}: the safetensors header is damaged ({error}); download it again"
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: the safetensors header is no JSON object")
    header.pop("__metadata__", None)
    return header


def _tensor_view(file: Path, name: str, entry: Any, *, start: int) -> TensorView:
    """Check one header entry against itself and turn it into a view."""
    subject = f"{file}: tensor {name}"
    if not isinstance(entry, dict):
        raise CheckpointError(f"{subject} has no dtype, shape and data_offsets")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise CheckpointError(f"{subject} has dtype {dtype!r}; supported are {', '.join(_DTYPES)}")
    if not _is_sizes(shape):
        raise CheckpointError(f"{subject} has shape {shape!r}; it must be a list of sizes")
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{subject} has data_offsets {offsets!r}; two sizes are needed")
    view = TensorView(
        name=name,
        shape=tuple(shape),
        dtype=_DTYPES[dtype],
        file=file,
        offset=start + offsets[0],
    )
    if offsets[1] - offsets[0] != view.nbytes:
        raise CheckpointError(
            f"{subject}, {dtype} {list(view.shape)}, needs {view.nbytes} bytes, but its "
            f"data_offsets give it {offsets[1] - offsets[0]}; download the file again"
        )
    return view


def _is_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_coverage(
    file: Path, tensors: dict[str, TensorView], *, start: int, file_size: int
) -> None:
    """Check that the tensors tile the file after the header: no gap, no overlap, no rest."""
    end = start
    for view in sorted(tensors.values(), key=lambda view: (view.offset, view.nbytes)):
        if view.offset != end:
            fault = "overlaps another tensor" if view.offset < end else "leaves a gap before it"
            raise CheckpointError(f"{file}: tensor {view.name} {fault}; download the file again")
        end += view.nbytes
    if end > file_size:
        raise CheckpointError(
            f"{file} is truncated: its tensors end at byte {end}, the file has {file_size}; "
            "download it again"
        )
    if end < file_size:
        raise CheckpointError(
            f"{file} has {file_size - end} bytes after its last tensor; download it again"
        )
