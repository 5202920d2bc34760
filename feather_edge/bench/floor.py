"""The static floor: what a request costs at least, before anybody optimises anything.

A graph can be no faster than its operations at the rate at which this machine multiplies matrices
of that size, and no faster than reading its weights once. The larger of the two is its roof. It is
a roof of the float arithmetic that is measured: a graph with quantised weights or activations may
get above it.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np

from feather_edge.bench.graph_cost import graph_cost, weight_bytes
from feather_edge.evaluate.cost import segment_flops
from feather_edge.images import load_image

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from feather_edge.bench.rates import MachineRates
    from feather_edge.bench.summary import Summary
    from feather_edge.bundle import Bundle
    from feather_edge.graphs import GraphSpec
    from feather_edge.images.pixels import ImageSource

__all__ = ["Floor", "GraphFloor", "RequestFloor", "static_floor"]

Number = TypeVar("Number", int, float)


class GraphFloor(msgspec.Struct, frozen=True, kw_only=True):
    """One graph over one request's prompt.

    Attributes:
        graph: its name.
        num_rows: rows that enter it, of a vision encoder those of its largest product.
        flops: of its matrix products; the last segment's without the one row of logits. None
            where the graph's shapes depend on values.
        weight_bytes: read once per run.
        matmul: (M, K, N) of the product whose rate was measured; None where there is none.
        gflops_per_s: that rate.
        roof_ms: no run is faster; None where nothing could be measured.
    """

    graph: str
    num_rows: int | None
    flops: int | None
    weight_bytes: int
    matmul: tuple[int, int, int] | None
    gflops_per_s: float | None
    roof_ms: float | None


class RequestFloor(msgspec.Struct, frozen=True, kw_only=True):
    """One request: the vision encoder, the segments over what is kept, and one decode step."""

    vision: GraphFloor
    segments: tuple[GraphFloor, ...]
    prefill_flops: int
    kv_bytes: int
    prefill_roof_ms: float | None
    ttft_roof_ms: float | None
    tpot_roof_ms: float | None


class Floor(msgspec.Struct, frozen=True, kw_only=True):
    """The floor of a bundle on this machine.

    Attributes:
        weight_bytes: of all graphs.
        kv_bytes_per_token: of all layers.
        copy_gbytes_per_s: read and written; None where it was not measured.
        unpruned: of a request that keeps everything.
        pruned: of one that does not, if there was any.
    """

    weight_bytes: int
    kv_bytes_per_token: int
    copy_gbytes_per_s: float | None
    unpruned: RequestFloor
    pruned: RequestFloor | None


def static_floor(
    bundle: Bundle,
    image: ImageSource,
    unpruned: Summary,
    pruned: Summary | None,
    rates: MachineRates,
) -> Floor:
    """Return the floor of requests with the token counts of these two.

    Args:
        bundle: whose graphs.
        image: a picture that was asked about.
        unpruned: requests that kept everything; of both, only the counts are looked at.
        pruned: requests that did not.
        rates: of this machine.
    """
    graphs = (bundle.vision_encoder, *bundle.decoders)
    weights = {spec.name: weight_bytes(bundle.path / spec.file) for spec in graphs}
    total = sum(weights.values())
    copy_rate = rates.copy(total)
    floors = _Floors(bundle, image, weights, rates, copy_rate)
    return Floor(
        weight_bytes=total,
        kv_bytes_per_token=sum(floors.kv_bytes_per_token),
        copy_gbytes_per_s=None if copy_rate is None else copy_rate / 1e9,
        unpruned=floors.request(unpruned),
        pruned=None if pruned is None else floors.request(pruned),
    )


class _Floors:
    """What the floors of all requests share."""

    def __init__(
        self,
        bundle: Bundle,
        image: ImageSource,
        weights: dict[str, int],
        rates: MachineRates,
        copy_rate: float | None,
    ) -> None:
        self._bundle = bundle
        self._image = image
        self._weights = weights
        self._rates = rates
        self._copy_rate = copy_rate
        shape = bundle.manifest.decoder
        item_bytes = np.dtype(bundle.decoders[0].inputs[0].dtype).itemsize
        per_layer = 2 * shape.num_key_value_heads * shape.head_dim * item_bytes
        self.kv_bytes_per_token = [per_layer * s.num_layers for s in bundle.schedule.segments]

    def request(self, summary: Summary) -> RequestFloor:
        """Return the floor of a request with these counts of tokens."""
        rows = [count + summary.num_text_tokens for count in summary.num_visual_tokens]
        shape = self._bundle.manifest.decoder
        flops = segment_flops(self._bundle, summary.num_visual_tokens, summary.num_text_tokens)
        vision = self._vision
        segments = tuple(
            self._graph(
                spec.name, count, cost, (count, shape.hidden_size, shape.intermediate_size)
            )
            for spec, count, cost in zip(self._bundle.decoders, rows, flops, strict=True)
        )
        kv_bytes = sum(
            count * per_token
            for count, per_token in zip(rows, self.kv_bytes_per_token, strict=True)
        )
        prefill_ms = _sum(segment.roof_ms for segment in segments)
        step_bytes = sum(segment.weight_bytes for segment in segments) + kv_bytes
        return RequestFloor(
            vision=vision,
            segments=segments,
            prefill_flops=sum(flops),
            kv_bytes=kv_bytes,
            prefill_roof_ms=prefill_ms,
            ttft_roof_ms=_sum([vision.roof_ms, prefill_ms]),
            tpot_roof_ms=self._reading_ms(step_bytes),
        )

    @cached_property
    def _vision(self) -> GraphFloor:
        spec = self._bundle.vision_encoder
        prepared = self._bundle.manifest.image.prepare([load_image(self._image)])
        costs = [
            graph_cost(self._bundle.path / spec.file, _sizes(spec, call))
            for call in prepared.calls
        ]
        flops = _sum(None if cost is None else cost.flops for cost in costs)
        matmuls = [cost.matmul for cost in costs if cost is not None and cost.matmul is not None]
        largest = max(matmuls, key=math.prod, default=None)
        return self._graph(spec.name, largest and largest[0], flops, largest)

    def _graph(
        self,
        name: str,
        num_rows: int | None,
        flops: int | None,
        matmul: tuple[int, int, int] | None,
    ) -> GraphFloor:
        dtype = self._bundle.decoders[0].inputs[0].dtype
        rate = None if matmul is None else self._rates.matmul(*matmul, dtype)
        reading_ms = self._reading_ms(self._weights[name])
        computing_ms = None if flops is None or rate is None else flops / rate * 1e3
        known = [ms for ms in (computing_ms, reading_ms) if ms is not None]
        return GraphFloor(
            graph=name,
            num_rows=num_rows,
            flops=flops,
            weight_bytes=self._weights[name],
            matmul=matmul,
            gflops_per_s=None if rate is None else rate / 1e9,
            roof_ms=max(known, default=None),
        )

    def _reading_ms(self, num_bytes: int) -> float | None:
        return None if self._copy_rate is None else num_bytes / self._copy_rate * 1e3


def _sizes(spec: GraphSpec, call: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Return the sizes of the named dimensions in one run of a graph."""
    return {
        dim: size
        for tensor in spec.inputs
        for dim, size in zip(tensor.shape, call[tensor.name].shape, strict=True)
        if isinstance(dim, str)
    }


def _sum(values: Iterable[Number | None]) -> Number | None:
    """Return the sum, None where a part is unknown."""
    parts = list(values)
    known = [part for part in parts if part is not None]
    return sum(known[1:], known[0]) if known and len(known) == len(parts) else None
