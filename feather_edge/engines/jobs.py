"""What a build hands to its worker process, and what comes back; both as JSON."""

from __future__ import annotations

import msgspec

from feather_edge.engine_record import OptimizationProfile
from feather_edge.recipes import EngineBackend

__all__ = ["Device", "EngineJob", "EngineResult", "Environment"]


class EngineJob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One engine to build.

    Attributes:
        graph: name of the graph.
        backend: which TensorRT.
        model: path of the ONNX file.
        engine: path to write the engine to.
        result: path to write the ``EngineResult`` to.
        profiles: of the engine, in order.
        compute_capabilities: TensorRT-RTX generates code for these.
        builder_optimization_level: as in TensorRT.
        pool_limits: bytes of a memory pool, by its name in TensorRT.
        timing_cache: file to read and write, or None.
        plugin: library to register before parsing, or None.
        strip_functions: whether to parse without functions, so that the plugin is found.
        fixed_dims: sizes of named dimensions, parsed instead of the names.
        decomposable_attention: whether attention may run without a fused kernel.
    """

    graph: str
    backend: EngineBackend
    model: str
    engine: str
    result: str
    profiles: tuple[OptimizationProfile, ...]
    compute_capabilities: tuple[str, ...]
    builder_optimization_level: int
    pool_limits: dict[str, int]
    timing_cache: str | None
    plugin: str | None
    strip_functions: bool
    fixed_dims: dict[str, int]
    decomposable_attention: bool


class EngineResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker measured."""

    build_s: float
    peak_rss_mib: float


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The GPU at hand."""

    name: str
    compute_capability: str
    cuda_version: str


class Environment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What builds here: the TensorRT that is installed, and the GPU, if there is one."""

    tensorrt_version: str
    device: Device | None
