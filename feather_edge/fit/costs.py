"""What each stage takes at its peak: sums of a few terms, each with a measured constant.

====== =============================================================================
stage  peak
====== =============================================================================
export a process, and the weight that takes most while it is written
build  a process and a multiple of the weights, of the largest graphs built at once
run    a process, weights, KV caches at the kept lengths, activations
====== =============================================================================

Constants were measured by ``tools/measure_fit.py``, whose table is in docs/fit.md, with the
versions and the machine. Those of a GPU's own software could not be: they say so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from feather_edge.engines.memory import INTEGERS, ITEM_BYTES, estimate, pool_bytes
from feather_edge.engines.profiles import decoder_profiles, read_limits, vision_profiles
from feather_edge.fit.activations import activations
from feather_edge.fit.report import GraphFit
from feather_edge.graphs import VISION_ENCODER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feather_edge.engine_record import OptimizationProfile
    from feather_edge.engines.memory import MemoryEstimate
    from feather_edge.engines.profiles import Limits
    from feather_edge.fit.sizes import ModelSizes
    from feather_edge.graphs import GraphSpec
    from feather_edge.recipes import EngineRecipe

__all__ = ["Demand", "demand"]

MIB = 2**20

EXPORT_PROCESS_MIB = 100
"""Python, numpy, onnx and onnx-ir, the graphs without data, and nothing written yet."""
CALIBRATION_FACTOR = 1.3
"""Of a float graph that computes layers both ways: the float weights and a byte for each."""

CPU_PROCESS_MIB = 105
"""Python, numpy, Pillow and ONNX Runtime, with a picture and no graph."""
CPU_FACTORS = {"float": 1.0, "float16": 2.3}
"""Memory over bytes of weights in ONNX Runtime on a CPU: float16 is widened, and both are kept."""
CPU_INTEGER_FACTOR = 2.0
"""Of integer weights, which are packed anew; one model of int8 with float16 activations."""
CPU_ARENA_FACTOR = 1.0
"""Memory of ONNX Runtime's arenas over what is alive in a graph."""
CPU_SCORES_FACTOR = 2.0
"""Its attention holds the scores of all heads, and what softmax makes of them, in float32."""

DEVICE_PROCESS_MIB = 600
"""Python with a CUDA context and TensorRT's kernels. Not measured: no GPU was at hand."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a model takes, in MiB: the parts of each stage's peak, its graphs, its disk."""

    stages: dict[str, dict[str, float]]
    graphs: tuple[GraphFit, ...]
    bundle_mib: float
    engines_mib: float

    def peak_mib(self, stage: str) -> float:
        """Return the peak of a stage."""
        return sum(self.stages[stage].values())


@dataclass(frozen=True, kw_only=True)
class _Graph:
    spec: GraphSpec
    weights: dict[str, int]
    rows: int
    engine: MemoryEstimate
    cache: float
    live: float
    scores: float


def demand(sizes: ModelSizes, recipe: EngineRecipe, *, jobs: int, on_gpu: bool) -> Demand:
    """Return what a model takes.

    Args:
        sizes: of the model.
        recipe: limits and builder settings.
        jobs: engines built at once.
        on_gpu: it runs as engines; otherwise in ONNX Runtime on the CPU, at the lengths that the
            recipe's own pruning leaves.

    Raises:
        RecipeError: if the limits do not fit the model.
    """
    limits = read_limits(sizes.manifest, sizes.schedule, recipe)
    graphs = _graphs(sizes, limits, recipe, on_gpu=on_gpu)
    stages: dict[str, dict[str, float]] = {}
    if sizes.checkpoint is not None:
        stages["export"] = _export(sizes, graphs)
    if on_gpu:
        stages["build"] = _build(graphs, recipe, jobs=jobs)
    stages["run"] = _run_on_gpu(graphs) if on_gpu else _run_on_cpu(graphs)
    return Demand(
        stages=stages,
        graphs=tuple(_graph_fit(graph) for graph in graphs),
        bundle_mib=sizes.disk_bytes / MIB,
        engines_mib=sum(graph.engine.engine_mib for graph in graphs) if on_gpu else 0.0,
    )


def _graphs(
    sizes: ModelSizes, limits: Limits, recipe: EngineRecipe, *, on_gpu: bool
) -> list[_Graph]:
    graphs = []
    rows = limits.max_rows if on_gpu else limits.opt_rows
    for number, spec in enumerate(sizes.graphs):
        index = number - 1  # of the segment
        if spec.name == VISION_ENCODER:
            profiles: tuple[OptimizationProfile, ...] = vision_profiles(spec, limits)
            dims = {name: largest for name, (_, _, largest) in limits.vision.items()}
            num_rows = recipe.max_visual_tokens
        else:
            profiles = decoder_profiles(spec, index, limits, profiles=recipe.profiles)
            num_rows = rows[index]
            kept = rows[index + 1] if index + 1 < len(rows) else 0
            dims = {"kept": kept, "sequence": num_rows, "past_sequence": 0}
            dims |= {"total_sequence": num_rows, "batch": limits.batch}
        found = activations(sizes.models[spec.name], dims)
        num_new = limits.capacity[index] - limits.max_rows[index]
        graphs.append(
            _Graph(
                spec=spec,
                weights=sizes.weights[spec.name],
                rows=num_rows,
                engine=estimate(sizes.weights[spec.name], spec, profiles),
                cache=_cache_mib(spec, num_rows + num_new, limits.batch),
                live=found.live / MIB,
                scores=found.scores / MIB,
            )
        )
    return graphs


def _export(sizes: ModelSizes, graphs: list[_Graph]) -> dict[str, float]:
    parts = {"process": float(EXPORT_PROCESS_MIB), "largest weight": sizes.write_bytes / MIB}
    if sizes.needs_calibration:
        num = sum(sum(graph.weights.values()) for graph in graphs) / MIB
        parts["calibration"] = num * 4 * CALIBRATION_FACTOR
    return parts


def _build(graphs: list[_Graph], recipe: EngineRecipe, *, jobs: int) -> dict[str, float]:
    peaks = sorted((graph.engine.build_mib for graph in graphs), reverse=True)[:jobs]
    # TensorRT-RTX times no tactics on a device, so it has no use for their memory.
    pools = {} if recipe.backend == "tensorrt-rtx" else pool_bytes(recipe.pool_limit)
    return {
        "builders": sum(peaks),
        "workspace": pools.get("workspace", 0) / MIB * len(peaks),
    }


def _run_on_gpu(graphs: list[_Graph]) -> dict[str, float]:
    return {
        "process": float(DEVICE_PROCESS_MIB),
        "engines": sum(graph.engine.engine_mib for graph in graphs),
        "KV caches": sum(graph.engine.cache_mib for graph in graphs),
        "inputs and outputs": sum(graph.engine.io_mib for graph in graphs),
        # The contexts of all engines share one memory.
        "activations": max(graph.live for graph in graphs),
    }


def _run_on_cpu(graphs: list[_Graph]) -> dict[str, float]:
    return {
        "process": float(CPU_PROCESS_MIB),
        "weights": sum(_cpu_weights(graph.weights) for graph in graphs) / MIB,
        "KV caches": 2 * sum(graph.cache for graph in graphs),
        "attention scores": CPU_SCORES_FACTOR * sum(graph.scores for graph in graphs),
        "activations": CPU_ARENA_FACTOR * sum(graph.live for graph in graphs),
    }


def _cpu_weights(weights: Mapping[str, int]) -> float:
    return sum(
        size * (CPU_INTEGER_FACTOR if kind in INTEGERS else CPU_FACTORS.get(kind, 1.0))
        for kind, size in weights.items()
    )


def _cache_mib(spec: GraphSpec, num_tokens: int, batch: int) -> float:
    """Return MiB of a segment's caches, filled with ``num_tokens`` each."""
    names = {tensor.name: tensor for tensor in spec.outputs if tensor.name in spec.caches}
    dims = [[d for d in tensor.shape if isinstance(d, int)] for tensor in names.values()]
    item = ITEM_BYTES[spec.inputs[0].dtype]
    return sum(math.prod(sizes) for sizes in dims) * num_tokens * batch * item / MIB


def _graph_fit(graph: _Graph) -> GraphFit:
    return GraphFit(
        name=graph.spec.name,
        weights_mib={kind: round(size / MIB, 1) for kind, size in graph.weights.items()},
        rows=graph.rows,
        cache_mib=round(graph.cache, 1),
        activations_mib=round(graph.live, 1),
    )
