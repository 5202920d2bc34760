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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from feather_edge.engines.memory import (
    INTEGERS,
    ITEM_BYTES,
    estimate,
    largest_weight_bytes,
    pool_bytes,
)
from feather_edge.engines.profiles import decoder_profiles, read_limits, vision_profiles
from feather_edge.fit.activations import activations
from feather_edge.fit.report import GraphFit
from feather_edge.graphs import VISION_ENCODER
from feather_edge.recipes import EngineRecipe
from feather_edge.runtime.backends._causal_caches import is_eligible
from feather_edge.runtime.spans import typical_layout

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feather_edge.engine_record import OptimizationProfile
    from feather_edge.engines.memory import MemoryEstimate
    from feather_edge.engines.profiles import Limits
    from feather_edge.fit.sizes import ModelSizes
    from feather_edge.graphs import GraphSpec

__all__ = ["Demand", "demand"]

MIB = 2**20

EXPORT_PROCESS_MIB = 100
"""Python, numpy, onnx and onnx-ir, the graphs without data, and nothing written yet."""
CALIBRATION_PROCESS_MIB = 138
"""The same with ONNX Runtime and Pillow, which run the sample prompts of a calibration."""
SAMPLE_TEXT_TOKENS = 48
"""Of a sample prompt in a chat template."""

CPU_PROCESS_MIB = 105
"""Python, numpy, Pillow and ONNX Runtime, with a picture and no graph."""
CPU_FACTORS = {"float": 1.0, "float16": 2.3}
"""Memory over bytes of weights in ONNX Runtime on a CPU: float16 is widened, and both are kept."""
CPU_INTEGER_FACTOR = 2.0
"""Of integer weights, which are packed anew; one model of int8 with float16 activations."""
CPU_ARENA_FACTOR = 1.5
"""Memory of ONNX Runtime's arenas over what is alive in a graph: they grow in large pieces."""
CPU_SCORES_FACTOR = 1.7
"""Its attention holds the scores of all heads, and what softmax makes of them, in float32.

The operator that it has for causal decoders in float32 takes the scores piece by piece, and holds
none; see ``runtime.backends._causal_caches``.
"""

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
    probes: float
    largest_weight: float
    in_place: bool


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
        stages["export"] = _export(sizes)
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
    num_new = limits.capacity[0] - limits.max_rows[0]  # the answer's, in every segment
    if not on_gpu:  # engines hold slots for every prompt; a request on a CPU is one of them
        asked = recipe.max_cache_capacity - recipe.max_prompt_tokens - recipe.max_visual_tokens
        num_new = min(max(asked, 1), limits.capacity[0] - rows[0])
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
        graphs.append(
            _Graph(
                spec=spec,
                weights=sizes.weights[spec.name],
                rows=num_rows,
                engine=estimate(sizes.weights[spec.name], spec, profiles),
                cache=_cache_mib(spec, num_rows + num_new, limits.batch),
                live=found.live / MIB,
                scores=found.scores / MIB,
                probes=found.probes / MIB,
                largest_weight=largest_weight_bytes(sizes.models[spec.name]) / MIB,
                in_place=sizes.manifest.prompt_attention == "causal" and is_eligible(spec),
            )
        )
    return graphs


def _export(sizes: ModelSizes) -> dict[str, float]:
    writing = {"process": float(EXPORT_PROCESS_MIB), "largest weight": sizes.write_bytes / MIB}
    if sizes.calibration is None:
        return writing
    calibration = _calibration(sizes.calibration)
    return max(writing, calibration, key=lambda parts: sum(parts.values()))


def _calibration(sizes: ModelSizes) -> dict[str, float]:
    """Return what it takes to run sample prompts through float graphs that give their probes."""
    visual = typical_layout(sizes.manifest).num_visual_tokens
    recipe = EngineRecipe(
        max_prompt_tokens=SAMPLE_TEXT_TOKENS,
        opt_prompt_tokens=SAMPLE_TEXT_TOKENS,
        max_visual_tokens=visual,
        max_cache_capacity=SAMPLE_TEXT_TOKENS + visual + 1,
    )
    limits = read_limits(sizes.manifest, sizes.schedule, recipe)
    # Calibration runs the graphs as they are.
    graphs = [
        replace(graph, in_place=False) for graph in _graphs(sizes, limits, recipe, on_gpu=False)
    ]
    return _run_on_cpu(graphs) | {
        "process": float(CALIBRATION_PROCESS_MIB),
        "probes": CPU_ARENA_FACTOR * sum(graph.probes for graph in graphs),
    }


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
    """Return what a request takes, or, where that is more, opening the graphs before it."""
    open_graphs = {
        "process": float(CPU_PROCESS_MIB),
        "weights": sum(_cpu_weights(graph.weights) for graph in graphs) / MIB,
    }
    # A weight is there as it lies in the file and packed, until it is packed as a whole.
    opening = {"largest weight": max(graph.largest_weight for graph in graphs)}
    running = {
        "KV caches": sum(graph.cache * (1 if graph.in_place else 2) for graph in graphs),
        "attention scores": CPU_SCORES_FACTOR
        * sum(graph.scores for graph in graphs if not graph.in_place),
        "activations": CPU_ARENA_FACTOR * sum(graph.live for graph in graphs),
    }
    return open_graphs | max(opening, running, key=lambda parts: sum(parts.values()))


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
