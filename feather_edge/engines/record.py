"""``<graph>.json`` beside each engine: what it was built from, by what, and for what.

An engine runs only where it was built: on another TensorRT version or GPU it does not load, or
loads and is slow. The record is compared before an engine is opened, so that the message can say
which of the two it is and how to rebuild.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import msgspec

from feather_edge.engines.profiles import OptimizationProfile
from feather_edge.errors import BuildError
from feather_edge.graphs import EMBED_TOKENS_FILE
from feather_edge.recipes import EngineBackend

if TYPE_CHECKING:
    from pathlib import Path

    from feather_edge.bundle import Bundle
    from feather_edge.engines.jobs import Environment
    from feather_edge.graphs import GraphForm, GraphSpec

__all__ = [
    "EngineRecord",
    "check_fit",
    "engine_file",
    "engine_folder",
    "file_hash",
    "graph_hash",
    "is_up_to_date",
    "publish",
    "read_record",
    "rebuild_command",
]

RECORD_VERSION = 1
MEASURED = ("build_s", "peak_rss_mib", "num_bytes")
"""Fields that differ from one build to the next and say nothing about what was built."""


class EngineRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an engine is.

    Attributes:
        record_version: of this format.
        feather_edge_version: what built it.
        target: name of the recipe.
        graph: name of the graph.
        opset: of the form that was built.
        graph_sha256: of the graph's file and its weights.
        precision: of the bundle.
        backend: which TensorRT.
        tensorrt_version: that built it.
        cuda_version: of the driver; None where an engine was built without a GPU.
        device_name: of the GPU that built it, or None.
        compute_capabilities: that it runs on.
        profiles: what it accepts.
        builder_optimization_level: as in TensorRT.
        pool_limits: bytes of the builder's memory pools.
        decomposable_attention: whether attention may run without a fused kernel.
        plugin: file name of the plugin library that it needs, or None.
        plugin_sha256: of that library.
        build_s: seconds in the builder.
        peak_rss_mib: most host memory of the process that built it.
        num_bytes: of the engine.
    """

    record_version: int
    feather_edge_version: str
    target: str
    graph: str
    opset: int
    graph_sha256: str
    precision: str
    backend: EngineBackend
    tensorrt_version: str
    cuda_version: str | None
    device_name: str | None
    compute_capabilities: tuple[str, ...]
    profiles: tuple[OptimizationProfile, ...]
    builder_optimization_level: int
    pool_limits: dict[str, int]
    decomposable_attention: bool
    plugin: str | None
    plugin_sha256: str | None
    build_s: float = 0.0
    peak_rss_mib: float = 0.0
    num_bytes: int = 0


def engine_folder(bundle: Path, target: str) -> Path:
    """Return where the engines of a target are."""
    return bundle / "engines" / target


def engine_file(folder: Path, graph: str) -> Path:
    """Return an engine's file; its record is beside it, ``.json``."""
    return folder / f"{graph}.engine"


def graph_hash(bundle: Bundle, spec: GraphSpec, form: GraphForm) -> str:
    """Return one hash of a graph's form and of every file of weights that it may read."""
    files = bundle.manifest.files
    names = (form.file, spec.weights_file, EMBED_TOKENS_FILE)
    text = "\n".join(f"{name} {files[name].sha256}" for name in names if name in files)
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a small file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_up_to_date(engine: Path, wanted: EngineRecord) -> bool:
    """Return whether an engine is there and is what a build would make again."""
    try:
        found = msgspec.json.decode(engine.with_suffix(".json").read_bytes(), type=EngineRecord)
        size = engine.stat().st_size
    except (OSError, msgspec.MsgspecError):
        return False
    return found.num_bytes == size and not _differences(found, wanted, skip=MEASURED)


def publish(partial: Path, engine: Path, record: EngineRecord) -> None:
    """Put an engine and its record in place; at no time does a record describe another engine."""
    text = msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"
    file = engine.with_suffix(".json")
    staged = partial.with_suffix(".record")
    staged.write_bytes(text)
    file.unlink(missing_ok=True)
    os.replace(partial, engine)  # noqa: PTH105 - Path.replace is the same
    staged.replace(file)


def read_record(bundle: Path, target: str, graph: str) -> EngineRecord:
    """Read the record of an engine.

    Raises:
        BuildError: if there is no engine, or no valid record of it.
    """
    engine = engine_file(engine_folder(bundle, target), graph)
    remedy = f"build it with: {rebuild_command(bundle, target)}"
    if not engine.is_file() or not engine.with_suffix(".json").is_file():
        raise BuildError(f"{bundle} has no engine of {graph} for target {target}; {remedy}")
    try:
        record = msgspec.json.decode(engine.with_suffix(".json").read_bytes(), type=EngineRecord)
    except msgspec.MsgspecError as error:
        raise BuildError(f"{engine.with_suffix('.json')} is damaged: {error}; {remedy}") from error
    size = engine.stat().st_size
    if size != record.num_bytes:
        raise BuildError(
            f"{engine} has {size} bytes, its record says {record.num_bytes}; {remedy} -f"
        )
    return record


def check_fit(
    record: EngineRecord,
    environment: Environment,
    *,
    bundle: Path,
    graph_sha256: str,
    plugin_sha256: str | None = None,
) -> None:
    """Refuse an engine that was built from other files, or for another machine than this.

    Raises:
        BuildError: naming the first field that differs and the command that rebuilds.
    """
    device = environment.device
    here: dict[str, str | None] = {
        "graph_sha256": graph_sha256,
        "tensorrt_version": environment.tensorrt_version,
        "plugin_sha256": plugin_sha256,
    }
    if record.backend == "tensorrt" and device is not None:
        here["device_name"] = device.name
    for name, value in here.items():
        if getattr(record, name) != value:
            raise _misfit(record, name, getattr(record, name), value, bundle)
    capability = None if device is None else device.compute_capability
    if record.compute_capabilities and capability not in record.compute_capabilities:
        built_for = ", ".join(record.compute_capabilities)
        raise _misfit(record, "compute_capabilities", built_for, capability, bundle)


def rebuild_command(bundle: Path, target: str) -> str:
    """Return the command line that builds the engines of a target."""
    return f"feather-edge build-engine {bundle} --target {target}"


def _misfit(
    record: EngineRecord, name: str, built: str | None, here: str | None, bundle: Path
) -> BuildError:
    return BuildError(
        f"the engine of {record.graph} for target {record.target} does not fit: {name} is "
        f"{built or 'none'} in its record and {here or 'none'} here; rebuild it with: "
        f"{rebuild_command(bundle, record.target)}"
    )


def _differences(found: EngineRecord, wanted: EngineRecord, *, skip: tuple[str, ...]) -> list[str]:
    names = [name for name in EngineRecord.__struct_fields__ if name not in skip]
    return [name for name in names if getattr(found, name) != getattr(wanted, name)]
