"""TensorRT and TensorRT-RTX: the only file that imports them, and where versions differ.

====================================  ==========================================================
what differs                          how it is met here
====================================  ==========================================================
two packages                          Polygraphy's loaders take ``tensorrt`` or ``tensorrt_rtx``
precision flags (gone in 11)          none are used: networks are strongly typed, always
fused attention (10.14 and newer)     made decomposable where the type exists and the job asks
plugins before functions (10.7)       for older versions functions are cut from the model
caches in place (10.15)               their capacity is written into the model: it must be static
indices of TopK (32 bits before 11)   the graphs name no type for them
timing cache                          read and written by Polygraphy; TensorRT-RTX has none
====================================  ==========================================================

Runs in a worker process only: TensorRT may end the process it runs in.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feather_edge.engines.model_bytes import model_bytes
from feather_edge.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Callable

    from feather_edge.engines.jobs import EngineJob
    from feather_edge.recipes import EngineBackend

__all__ = ["build_engine", "load", "version"]

INSTALL = {
    "tensorrt": "pip install 'feather-edge[tensorrt]', on a Jetson use JetPack's own package",
    "tensorrt-rtx": "pip install 'feather-edge[rtx]'",
}


def load(backend: EngineBackend) -> Any:
    """Return the python module of ``backend``; Polygraphy uses the same from here on.

    Raises:
        BuildError: if it is not installed.
    """
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if backend == "tensorrt-rtx" else "0"
    try:
        import polygraphy  # noqa: F401 - only whether it is there

        if backend == "tensorrt-rtx":
            import tensorrt_rtx as trt
        else:
            import tensorrt as trt
    except ImportError as error:
        raise BuildError(
            f"backend {backend} cannot be used here: {error}; install it: {INSTALL[backend]}"
        ) from error
    return trt


def version(backend: EngineBackend) -> str:
    """Return the version of the installed TensorRT."""
    return str(load(backend).__version__)


def build_engine(job: EngineJob, *, on_phase: Callable[[str, int, int], None]) -> float:
    """Build one engine and write it; returns the seconds it took.

    Whatever TensorRT has to say goes to Polygraphy's log; the caller judges it.
    """
    trt = load(job.backend)
    from polygraphy.backend.trt import EngineBytesFromNetwork, PostprocessNetwork

    if job.plugin is not None:
        trt.get_plugin_registry().load_library(job.plugin)
    start = time.perf_counter()
    network: Any = partial(_parse, trt, job)
    if job.decomposable_attention:
        network = PostprocessNetwork(network, lambda network: _decompose(trt, network))
    if job.plugin is not None:
        network = PostprocessNetwork(network, lambda network: _require_plugin(trt, network, job))
    engine = EngineBytesFromNetwork(
        network,
        config=lambda builder, network: _config(trt, job, builder, network, on_phase),
        save_timing_cache=job.timing_cache,
    )()
    build_s = time.perf_counter() - start
    with Path(job.engine).open("wb") as stream:
        stream.write(engine)
        stream.flush()
        os.fsync(stream.fileno())
    return build_s


def _parse(trt: Any, job: EngineJob) -> tuple[Any, Any, Any]:
    """Return builder, network and parser of a model, which may differ from its file.

    Polygraphy's loader of bytes does not say where the weights are.
    """
    from polygraphy.backend.trt import CreateNetwork, get_trt_logger
    from polygraphy.logger import G_LOGGER

    builder, network = CreateNetwork(strongly_typed=True)()
    parser = trt.OnnxParser(network, get_trt_logger())
    is_parsed = parser.parse(model_bytes(job), path=job.model)
    for index in range(parser.num_errors):
        G_LOGGER.error(str(parser.get_error(index)))
    if not is_parsed or parser.num_errors:
        raise BuildError(f"Could not parse ONNX correctly: {job.model}")
    return builder, network, parser


def _config(
    trt: Any, job: EngineJob, builder: Any, network: Any, on_phase: Callable[[str, int, int], None]
) -> Any:
    options = {
        "profiles": _profiles(job, network),
        "builder_optimization_level": job.builder_optimization_level,
        "memory_pool_limits": {
            getattr(trt.MemoryPoolType, name.upper()): size
            for name, size in job.pool_limits.items()
        },
        "load_timing_cache": job.timing_cache,
        "progress_monitor": _progress_monitor(trt, on_phase),
    }
    if job.backend == "tensorrt-rtx":
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        pairs = [(int(c.split(".")[0]), int(c.split(".")[1])) for c in job.compute_capabilities]
        config = CreateConfigRTX(compute_capabilities=pairs or None, **options)(builder, network)
    else:
        from polygraphy.backend.trt import CreateConfig

        config = CreateConfig(**options)(builder, network)
    # float32 means float32: scores rank tokens, and a float32 bundle is there to be compared with.
    config.clear_flag(trt.BuilderFlag.TF32)
    return config


def _profiles(job: EngineJob, network: Any) -> list[Any]:
    """Return the profiles as Polygraphy takes them.

    ``num_kept`` is a range of values where TensorRT reads it as a shape, else a tensor of 1.
    """
    from polygraphy.backend.trt import Profile

    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    profiles = []
    for each in job.profiles:
        profile = Profile()
        for tensor in inputs:
            span = each.inputs[tensor.name]
            if tensor.name == "num_kept" and not tensor.is_shape_tensor:
                profile.add(tensor.name, (1,), (1,), (1,))
            else:
                profile.add(tensor.name, span.min, span.opt, span.max)
        profiles.append(profile)
    return profiles


def _decompose(trt: Any, network: Any) -> Any:
    """Let attention run as matrix products where no fused kernel fits, as in float32."""
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    for index in range(network.num_layers if kind is not None else 0):
        layer = network.get_layer(index)
        if layer.type == kind:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True
    return network


def _require_plugin(trt: Any, network: Any, job: EngineJob) -> Any:
    """Refuse a network that took the function although a plugin was given: it would go unseen."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    if not any(layer.type == trt.LayerType.PLUGIN_V3 for layer in layers):
        raise BuildError(
            f"TensorRT {trt.__version__} did not take the plugin of {job.plugin} for {job.graph}; "
            f"export the bundle again, or build with --plugin none"
        )
    return network


def _progress_monitor(trt: Any, on_phase: Callable[[str, int, int], None]) -> Any:
    """Return a monitor that reports (phase, steps done, steps), None before TensorRT 10."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.num_steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            self.num_steps[phase_name] = num_steps
            on_phase(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            on_phase(phase_name, step + 1, self.num_steps.get(phase_name, 0))
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.num_steps.pop(phase_name, None)

    return Monitor()
