"""``<graph>.json`` beside each engine: what it was built from, by what, and for what.

::

    bundle/engines/<target>/<graph>.engine
    bundle/engines/<target>/<graph>.json

An engine runs only where it was built: on another TensorRT version or GPU it does not load, or
loads and is slow. The record is compared before an engine is opened, so that the message can say
which of the two it is and how to rebuild.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

import msgspec

from feather_edge import strict_json
from feather_edge.bundle import is_inside
from feather_edge.errors import BackendError
from feather_edge.graphs import EMBED_TOKENS_FILE
from feather_edge.recipes import EngineBackend

if TYPE_CHECKING:
    from pathlib import Path

    from feather_edge.bundle import Bundle
    from feather_edge.graphs import GraphForm, GraphSpec

__all__ = [
    "EngineRecord",
    "OptimizationProfile",
    "ShapeRange",
    "check_fit",
    "check_graph",
    "engine_file",
    "engine_folder",
    "engine_targets",
    "graph_hash",
    "read_record",
    "rebuild_command",
    "records_sha256",
]

ProfileName = Literal["prefill", "decode", "both", "images"]
ENGINES_FOLDER = "engines"
MAX_RECORD_BYTES = 2**20


class ShapeRange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes from ``min`` to ``max``, tuned for ``opt``; the values themselves of ``num_kept``."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def distance(self, sizes: tuple[int, ...]) -> int:
        """Return by how much sizes are outside their ranges, 0 when they are all within."""
        return sum(
            max(low - size, size - high, 0)
            for low, size, high in zip(self.min, sizes, self.max, strict=True)
        )


class OptimizationProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The range of every input, of ``num_kept`` the range of its value."""

    name: ProfileName
    inputs: dict[str, ShapeRange]


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
    return bundle / ENGINES_FOLDER / target


def engine_file(folder: Path, graph: str) -> Path:
    """Return an engine's file; its record is beside it, ``.json``."""
    return folder / f"{graph}.engine"


def engine_targets(bundle: Path) -> tuple[str, ...]:
    """Return the targets that a bundle has engines of, in alphabetical order."""
    found = (bundle / ENGINES_FOLDER).glob("*/*.engine")
    return tuple(sorted({file.parent.name for file in found}))


def records_sha256(bundle: Path, *targets: str) -> str:
    """Return one hash of the records of all engines of these targets."""
    folders = (engine_folder(bundle, target) for target in targets)
    files = [file for folder in folders for file in sorted(folder.glob("*.json"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def graph_hash(bundle: Bundle, spec: GraphSpec, form: GraphForm) -> str:
    """Return one hash of a graph's form and of every file of weights that it may read."""
    files = bundle.manifest.files
    names = (form.file, spec.weights_file, EMBED_TOKENS_FILE)
    text = "\n".join(f"{name} {files[name].sha256}" for name in names if name in files)
    return hashlib.sha256(text.encode()).hexdigest()


def read_record(bundle: Path, target: str, graph: str) -> EngineRecord:
    """Read the record of an engine.

    Raises:
        BackendError: if there is no engine, or no valid record of it.
    """
    engine = engine_file(engine_folder(bundle, target), graph)
    file = engine.with_suffix(".json")
    remedy = f"build it with: {rebuild_command(bundle, target)}"
    if not (is_inside(engine, bundle) and is_inside(file, bundle)):
        raise BackendError(
            f"{engine} or its record lies outside of the bundle, which is never opened; {remedy}"
        )
    if not engine.is_file() or not file.is_file():
        raise BackendError(f"{bundle} has no engine of {graph} for target {target}; {remedy}")
    try:
        record = strict_json.read_record(file, EngineRecord, max_bytes=MAX_RECORD_BYTES)
    except strict_json.StrictJSONError as error:
        raise BackendError(f"{file} is no valid record: {error}; {remedy} -f") from error
    size = engine.stat().st_size
    if size != record.num_bytes:
        raise BackendError(
            f"{engine} has {size} bytes, its record says {record.num_bytes}; {remedy} -f"
        )
    return record


def check_fit(
    record: EngineRecord,
    bundle: Bundle,
    spec: GraphSpec,
    *,
    backend: str,
    tensorrt_version: str,
    device_name: str,
    compute_capability: str,
    plugin_sha256: str | None = None,
) -> None:
    """Refuse an engine that was built from other files, or for another machine than this.

    Raises:
        BackendError: naming the first field that differs and the command that rebuilds.
    """
    check_graph(record, bundle, spec)
    capabilities = record.compute_capabilities
    wanted: dict[str, tuple[object, object]] = {
        "backend": (record.backend, backend),
        "tensorrt_version": (record.tensorrt_version, tensorrt_version),
        "plugin_sha256": (record.plugin_sha256, plugin_sha256),
    }
    if record.device_name is not None:  # TensorRT-RTX builds for kinds of GPU, without one
        wanted["device_name"] = (record.device_name, device_name)
    if capabilities and compute_capability not in capabilities:
        wanted["compute_capabilities"] = (", ".join(capabilities), compute_capability)
    _require_equal(record, bundle, spec, wanted)


def check_graph(record: EngineRecord, bundle: Bundle, spec: GraphSpec) -> None:
    """Refuse an engine that was built from other files than the bundle's; needs no device.

    Raises:
        BackendError: naming the first field that differs and the command that rebuilds.
    """
    hashes = {form.opset: graph_hash(bundle, spec, form) for form in spec.forms}
    wanted: dict[str, tuple[object, object]] = {
        "graph": (record.graph, spec.name),
        "graph_sha256": (record.graph_sha256, hashes.get(record.opset)),
        "precision": (record.precision, bundle.manifest.recipe.precision),
    }
    _require_equal(record, bundle, spec, wanted)


def _require_equal(
    record: EngineRecord,
    bundle: Bundle,
    spec: GraphSpec,
    wanted: dict[str, tuple[object, object]],
) -> None:
    for name, (built, here) in wanted.items():
        if built != here:
            raise BackendError(
                f"the engine of {spec.name} for target {record.target} does not fit: {name} is "
                f"{built or 'none'} in its record, but {here or 'none'} here; rebuild it with: "
                f"{rebuild_command(bundle.path, record.target)}"
            )


def rebuild_command(bundle: Path, target: str) -> str:
    """Return the command line that builds the engines of a target."""
    return f"feather-edge build-engine {bundle} --target {target}"
