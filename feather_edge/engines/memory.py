"""How much memory a build and its engines will want, told before anything is built.

An estimate: the builder's appetite was measured with TensorRT-RTX 1.7 on a CPU (peak resident
memory of the process over bytes of weights, by engine; ``tools/measure_fit.py --output`` repeats
it). On a device tactics add the workspace limit.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

    from feather_edge.engine_record import OptimizationProfile
    from feather_edge.graphs import GraphSpec, TensorSpec

__all__ = [
    "INTEGERS",
    "ITEM_BYTES",
    "MemoryEstimate",
    "element_bits",
    "estimate",
    "largest_weight_bytes",
    "pool_bytes",
    "weight_bytes",
]

PROCESS_MIB = 266
"""Peak of a worker that builds next to nothing: decoders of 0.1 to 0.2 MiB took 265 to 267."""
BUILD_FACTOR, BUILD_FACTOR_PER_PROFILE = 1.2, 2.1
"""Peak of the builder over bytes of float weights, and what each profile adds."""
INTEGER_BUILD_FACTOR = 4.5
"""Peak of the builder over bytes of integer weights.

Eight engines of int8 and int4 with float16 activations, 11 to 66 MiB of integers and one profile
took 4.3 to 5.6, less where they were larger: part of it does not grow with the weights. With two
profiles, 7 MiB took 6.3, so profiles add little.
"""
INTEGER_ENGINE_FACTOR = 1.4
"""Engine over bytes of integer weights, which are stored once; 1.1 to 1.7 in the same engines."""
INTEGERS = frozenset({"int8", "int4", "uint8", "uint4"})
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "bool": 1}


class MemoryEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """MiB of one engine.

    Attributes:
        build_mib: peak of the process that builds it, without the tactics' workspace.
        engine_mib: of weights in the engine; TensorRT-RTX stores floats for each profile.
        cache_mib: of its KV caches, full, at the largest batch; caches that grow are there twice.
        io_mib: of its other inputs and outputs at their largest.
    """

    build_mib: float
    engine_mib: float
    cache_mib: float
    io_mib: float


def estimate(
    weights: Mapping[str, int], spec: GraphSpec, profiles: tuple[OptimizationProfile, ...]
) -> MemoryEstimate:
    """Return what one engine will want.

    Args:
        weights: bytes of the graph's weights by type, see ``weight_bytes``.
        spec: its contract in the form that is built.
        profiles: of the engine.
    """
    integers = sum(size for kind, size in weights.items() if kind in INTEGERS) / 2**20
    floats = sum(weights.values()) / 2**20 - integers
    factor = BUILD_FACTOR + BUILD_FACTOR_PER_PROFILE * len(profiles)
    sizes = [_io_bytes(spec, profile) for profile in profiles]
    return MemoryEstimate(
        build_mib=round(PROCESS_MIB + factor * floats + INTEGER_BUILD_FACTOR * integers, 1),
        engine_mib=round(floats * len(profiles) + INTEGER_ENGINE_FACTOR * integers, 1),
        cache_mib=round(max(cache for cache, _ in sizes) / 2**20, 1),
        io_mib=round(max(other for _, other in sizes) / 2**20, 1),
    )


def weight_bytes(model: onnx.ModelProto) -> dict[str, int]:
    """Return the bytes of a graph's weights by their type, such as ``float16`` or ``int8``."""
    import onnx

    found: dict[str, int] = {}
    for tensor in model.graph.initializer:
        name = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
        found[name] = found.get(name, 0) + _tensor_bytes(tensor)
    return found


def largest_weight_bytes(model: onnx.ModelProto) -> int:
    """Return the bytes of a graph's largest weight."""
    return max(map(_tensor_bytes, model.graph.initializer), default=0)


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    return int(math.prod(tensor.dims)) * element_bits(tensor.data_type) // 8


def element_bits(elem_type: int) -> int:
    """Return bits of an element of an ONNX type; 0 where no type is known."""
    import onnx

    if elem_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return 4
    if elem_type == onnx.TensorProto.UNDEFINED:
        return 0
    return int(onnx.helper.tensor_dtype_to_np_dtype(elem_type).itemsize) * 8


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
