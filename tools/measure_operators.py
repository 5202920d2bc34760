"""Say where OpenVINO's time goes in a bundle's decoder: by operator, prefill and decode step.

Usage: python tools/measure_operators.py BUNDLE [--backend openvino|openvino-bf16] [--rows N]
           [--steps N] [--threads N]

Runs random rows through the segments, unpruned: a prompt that does not count, then one of as many
rows that does, and decode steps after it. OpenVINO takes the times itself (``PERF_COUNT``), which
makes every run longer: compare shares, and take times of whole steps from ``feather-edge bench``.
Prints, for each part, the time by kind of operator and by the kernel that ran it, how much of the
time by the clock all of them are, and at what rate a step's weights were read, beside the rate at
which this machine copies as many bytes.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feather_edge.bench.graph_cost import weight_bytes
from feather_edge.bench.rates import MachineRates
from feather_edge.bundle import Bundle
from feather_edge.pruning import Layout
from feather_edge.runtime.backend_names import OPENVINO_BF16
from feather_edge.runtime.backends.openvino import OpenVinoBackend
from feather_edge.runtime.backends.wrapped import WrappedGraph
from feather_edge.runtime.decoder import DecoderChain
from feather_edge.runtime.embeddings import Embeddings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from feather_edge.graphs import GraphSpec
    from feather_edge.runtime.backends import Tensor

Operator = tuple[str, str]
"""Kind, and the kernel that ran it."""

PRODUCTS = ("FullyConnected", "FullyConnectedCompressed")
"""What OpenVINO calls products with weights, float and integer ones."""


SMALLEST_SHARE = 0.002
"""Of a part's operators; what takes less is not printed."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one run of a part took, the mean of all of them.

    Attributes:
        operators_ms: by kind and kernel.
        wall_ms: by the clock, over all segments and the host's part between them.
    """

    operators_ms: Mapping[Operator, float]
    wall_ms: float


class ProfiledGraph(WrappedGraph):
    """A graph that knows what its operators have taken so far."""

    def __init__(self, graph: Any) -> None:
        super().__init__(graph)
        self._request = graph.request
        self._num_runs = 0

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Graph.run``."""
        self._num_runs += 1
        return super().run(inputs)

    def taken_ms(self) -> Counter[Operator]:
        """Return the time of all runs: OpenVINO tells each operator's mean over them."""
        taken: Counter[Operator] = Counter()
        for each in self._request.profiling_info if self._num_runs else ():
            mean_ms = each.real_time.total_seconds() * 1e3
            taken[each.node_type, each.exec_type] += mean_ms * self._num_runs
        return taken


class ProfiledBackend(OpenVinoBackend):
    """OpenVINO, asked to take times."""

    def _new_core(self) -> Any:
        core = super()._new_core()
        core.set_property("CPU", {"PERF_COUNT": True})
        return core

    def open(self, file: Path, spec: GraphSpec) -> ProfiledGraph:
        """See ``Backend.open``."""
        return ProfiledGraph(super().open(file, spec))


def measure(
    bundle: Bundle, backend: ProfiledBackend, *, num_rows: int, num_steps: int
) -> dict[str, Part]:
    """Run a prompt and decode steps after it, and return what each of both took."""
    graphs = [backend.open(bundle.path / spec.file, spec) for spec in bundle.decoders]
    ids = np.random.default_rng(0).integers(0, bundle.manifest.decoder.vocab_size, num_rows)
    embeds = Embeddings.open(bundle)[ids]

    def chain() -> DecoderChain:
        return DecoderChain(
            graphs, bundle.manifest, bundle.schedule, backend, max_new_tokens=num_steps
        )

    def noted(num_runs: int, run: Callable[[], object]) -> Part:
        before = _taken_ms(graphs)
        start_s = time.perf_counter()
        for _ in range(num_runs):
            run()
        wall_ms = (time.perf_counter() - start_s) * 1e3
        after = _taken_ms(graphs)
        operators_ms = {kind: (after[kind] - before[kind]) / num_runs for kind in after}
        return Part(operators_ms=operators_ms, wall_ms=wall_ms / num_runs)

    def prefill(chain: DecoderChain) -> None:
        chain.prefill(embeds, Layout.full(len(embeds), []), None)

    prefill(chain())  # compiled for this many rows, which does not count
    counted = chain()
    return {
        "prefill": noted(1, lambda: prefill(counted)),
        "decode step": noted(num_steps, lambda: counted.decode_step(embeds[-1])),
    }


def _taken_ms(graphs: Sequence[ProfiledGraph]) -> Counter[Operator]:
    return sum((graph.taken_ms() for graph in graphs), Counter())


def report(name: str, part: Part) -> str:
    """Return a part's table, the operators that take most of its time first."""
    total_ms = sum(part.operators_ms.values())
    by_the_clock = f"{part.wall_ms:.2f} ms by the clock while times are taken"
    lines = [f"{name}: {by_the_clock}, {total_ms:.2f} ms in operators"]
    largest_first = sorted(part.operators_ms.items(), key=lambda item: -item[1])
    for (kind, kernel), taken_ms in largest_first:
        share = taken_ms / total_ms
        if share >= SMALLEST_SHARE:
            lines.append(f"  {taken_ms:9.3f} ms  {share:6.1%}  {kind:20} {kernel}")
    return "\n".join(lines)


def weights_report(num_bytes: int, step: Part, copy_rate: float | None) -> str:
    """Return at what rate the products of a step read the weights of all segments."""
    products_ms = sum(ms for (kind, _), ms in step.operators_ms.items() if kind in PRODUCTS)
    read = f"{num_bytes / products_ms / 1e6:.1f} GB/s" if products_ms else "no products"
    copied = "not measured" if copy_rate is None else f"{copy_rate / 1e9:.1f} GB/s"
    return (
        f"weights: {num_bytes / 1e6:.0f} MB a step, read by products at {read}; "
        f"copying as many, read and written: {copied}"
    )


def main() -> None:
    """Parse options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--backend", choices=("openvino", OPENVINO_BF16), default="openvino")
    parser.add_argument("--rows", type=int, default=450)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    in_bf16 = options.backend == OPENVINO_BF16
    backend = ProfiledBackend(num_threads=options.threads, in_bf16=in_bf16)
    parts = measure(bundle, backend, num_rows=options.rows, num_steps=options.steps)
    for name, part in parts.items():
        print(report(name, part), flush=True)
    num_bytes = sum(weight_bytes(bundle.path / spec.file) for spec in bundle.decoders)
    copy_rate = MachineRates(backend).copy(num_bytes)
    print(weights_report(num_bytes, parts["decode step"], copy_rate))


if __name__ == "__main__":
    main()
