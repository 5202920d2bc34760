"""How much memory a build and its engines will want, told before anything is built.

An estimate: the builder's appetite was measured with TensorRT-RTX 1.7 on a CPU (peak resident
memory of the process over bytes of weights; ``tools/measure_builder_peak.py`` repeats it). On a
device tactics add the workspace limit.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from feather_edge.bundle import Bundle
    from feather_edge.engine_record import OptimizationProfile
    from feather_edge.graphs import GraphSpec, TensorSpec

__all__ = ["MemoryEstimate", "estimate", "pool_bytes"]

PROCESS_MIB = 200
"""Peak of a worker that builds next to nothing."""
BUILD_FACTOR, BUILD_FACTOR_PER_PROFILE = 1.2, 2.1
"""Peak of the builder over bytes of weights, and what each profile adds."""
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "bool": 1}


class MemoryEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """MiB of one engine.

    Attributes:
        build_mib: peak of the process that builds it, without the tactics' workspace.
        engine_mib: of weights in the engine, which TensorRT-RTX stores for each profile.
        cache_mib: of its KV caches, full, at the largest batch; caches that grow are there twice.
        io_mib: of its other inputs and outputs at their largest.
    """

    build_mib: float
    engine_mib: float
    cache_mib: float
    io_mib: float


def estimate(
    bundle: Bundle, spec: GraphSpec, profiles: tuple[OptimizationProfile, ...]
) -> MemoryEstimate:
    """Return what one engine of ``bundle`` will want."""
    weights_mib = bundle.manifest.files[spec.weights_file].num_bytes / 2**20
    factor = BUILD_FACTOR + BUILD_FACTOR_PER_PROFILE * len(profiles)
    sizes = [_io_bytes(spec, profile) for profile in profiles]
    return MemoryEstimate(
        build_mib=round(PROCESS_MIB + factor * weights_mib, 1),
        engine_mib=round(weights_mib * len(profiles), 1),
        cache_mib=round(max(cache for cache, _ in sizes) / 2**20, 1),
        io_mib=round(max(other for _, other in sizes) / 2**20, 1),
    )


def pool_bytes(limits: tuple[str, ...]) -> dict[str, int]:
    """Return bytes by pool of limits such as ``workspace:2G``."""
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
    sizes = {}
    for limit in limits:
        pool, number, unit = re.fullmatch(r"(\w+):(\d+)([KMG]?)", limit).groups()  # type: ignore[union-attr]
        sizes[pool] = int(number) * units[unit]
    return sizes


def _io_bytes(spec: GraphSpec, profile: OptimizationProfile) -> tuple[int, int]:
    """Return bytes of the caches, and of everything else that is no cache."""
    dims: dict[str, int] = {}
    for tensor in spec.inputs:
        largest = profile.inputs[tensor.name].max
        dims |= {d: n for d, n in zip(tensor.shape, largest, strict=True) if isinstance(d, str)}
    if "num_kept" in profile.inputs:
        dims["kept"] = profile.inputs["num_kept"].max[0]
    # Visual tokens that leave the vision encoder are counted as what enters the decoder.
    dims.setdefault("visual_tokens", 0)
    num_copies = 1 if spec.caches_in_place else 2
    cache = num_copies * sum(_bytes(t, dims) for t in spec.outputs if t.name in spec.caches)
    rest = [t for t in spec.inputs if t.name not in spec.caches.values()]
    rest += [t for t in spec.outputs if t.name not in spec.caches]
    return cache, sum(_bytes(tensor, dims) for tensor in rest)


def _bytes(tensor: TensorSpec, dims: dict[str, int]) -> int:
    shape = [dims[d] if isinstance(d, str) else d for d in tensor.shape]
    return math.prod(shape) * ITEM_BYTES[tensor.dtype]
