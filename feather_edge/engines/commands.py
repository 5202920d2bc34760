"""A build as a Polygraphy command line, for whoever wants to repeat or vary it by hand."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from feather_edge.engines.jobs import EngineJob

__all__ = ["polygraphy_command"]


def polygraphy_command(job: EngineJob, *, output: str) -> str:
    """Return the ``polygraphy convert`` that does what a job does, profiles in order.

    Sizes that the parser must know are fixed first, in a copy of the graph beside the engine.
    """
    prefix = "POLYGRAPHY_USE_TENSORRT_RTX=1 " if job.backend == "tensorrt-rtx" else ""
    model = job.model
    for name, size in job.fixed_dims.items():
        fixed = str(Path(output).with_suffix(".onnx"))
        fix = ["python", "-m", "onnxruntime.tools.make_dynamic_shape_fixed"]
        fix += ["--dim_param", name, "--dim_value", str(size), model, fixed]
        prefix, model = f"{shlex.join(fix)} && {prefix}", fixed
    words = ["polygraphy", "convert", model, "--convert-to", "trt", "--strongly-typed"]
    words += ["--builder-optimization-level", str(job.builder_optimization_level)]
    for pool, size in job.pool_limits.items():
        words += ["--pool-limit", f"{pool}:{size}"]
    if job.compute_capabilities:
        words += ["--compute-capabilities", *job.compute_capabilities]
    if job.timing_cache is not None:
        words += ["--load-timing-cache", job.timing_cache, "--save-timing-cache", job.timing_cache]
    if job.plugin is not None:
        words += ["--plugins", job.plugin]
    for profile in job.profiles:
        for end in ("min", "opt", "max"):
            shapes = [
                f"{name}:[{','.join(map(str, getattr(span, end)))}]"
                for name, span in profile.inputs.items()
            ]
            words += [f"--trt-{end}-shapes", *shapes]
    return prefix + shlex.join([*words, "-o", output])
