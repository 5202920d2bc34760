"""What enters and leaves every graph while a session answers, kept on the host."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from feather_edge.evaluate.cache_forms import as_grown_inputs, as_grown_outputs, as_taken_by
from feather_edge.graphs import VISION_ENCODER
from feather_edge.runtime.backends.wrapped import WrappedBackend, WrappedGraph

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from feather_edge.graphs import GraphSpec
    from feather_edge.runtime.backends.base import Backend, Graph, Tensor

__all__ = ["GraphRun", "Phase", "Recorder"]

Phase = Literal["images", "prefill", "decode"]


@dataclass(frozen=True, kw_only=True)
class GraphRun:
    """One run of one graph, as if its caches grew: see ``cache_forms``."""

    sample: str
    phase: Phase
    spec: GraphSpec
    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]


class Recorder(WrappedBackend):
    """Runs graphs with another backend and keeps what it sees.

    Of every sample it keeps the images, the prefill and the first decode step: later steps are
    like the first.

    Attributes:
        runs: what was kept, in order.
    """

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self.runs: list[GraphRun] = []
        self._sample = ""
        self._counts: Counter[str] = Counter()
        self._arrays: dict[int, tuple[Tensor, NDArray[Any]]] = {}

    def begin(self, sample: str) -> None:
        """Begin a sample."""
        self._sample = sample
        self._counts.clear()
        self._arrays.clear()

    def open(self, file: Path, spec: GraphSpec) -> Graph:
        """See ``Backend.open``."""
        return _RecordedGraph(self, super().open(file, spec))

    def wants(self, spec: GraphSpec) -> bool:
        """Count a run of a graph; return whether it is kept, not a later decode step."""
        self._counts[spec.name] += 1
        return self._counts[spec.name] <= 2

    def record(
        self, spec: GraphSpec, inputs: dict[str, NDArray[Any]], outputs: dict[str, NDArray[Any]]
    ) -> None:
        """Keep the run that was counted last."""
        first: Phase = "images" if spec.name == VISION_ENCODER else "prefill"
        self.runs.append(
            GraphRun(
                sample=self._sample,
                phase=first if self._counts[spec.name] == 1 else "decode",
                spec=spec,
                inputs=inputs,
                outputs=outputs,
            )
        )

    def values(
        self, tensors: Mapping[str, Tensor], *, changing: Collection[str]
    ) -> dict[str, NDArray[Any]]:
        """Return the values of handles; what one graph gives and the next takes is kept once.

        Copies: what a backend downloads may live no longer than its handle, and the ``changing``
        ones are updated in place.
        """
        return {
            name: self.download(tensor).copy() if name in changing else self._unchanging(tensor)
            for name, tensor in tensors.items()
        }

    def _unchanging(self, tensor: Tensor) -> NDArray[Any]:
        if id(tensor) not in self._arrays:
            self._arrays[id(tensor)] = (tensor, self.download(tensor).copy())
        return self._arrays[id(tensor)][1]


class _RecordedGraph(WrappedGraph):
    def __init__(self, recorder: Recorder, graph: Graph) -> None:
        super().__init__(graph)
        self._recorder = recorder

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Graph.run``."""
        recorder, caches = self._recorder, self.spec.caches_in_place
        if not recorder.wants(self.spec):
            return self.graph.run(inputs)
        before = as_grown_inputs(self, recorder.values(inputs, changing=caches.values()))
        outputs = self.graph.run(inputs)
        _, num_total = as_taken_by(self, before)
        after = as_grown_outputs(
            self, recorder.values(outputs, changing=caches), num_total=num_total
        )
        recorder.record(self.spec, before, after)
        return outputs
