"""What enters and leaves every graph while a session answers, kept on the host."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from feather_edge.graphs import VISION_ENCODER
from feather_edge.runtime.backends.base import Backend, Graph, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from feather_edge.graphs import GraphSpec

__all__ = ["GraphRun", "Phase", "Recorder"]

Phase = Literal["images", "prefill", "decode"]


@dataclass(frozen=True, kw_only=True)
class GraphRun:
    """One run of one graph, inputs and outputs in the order of its contract."""

    sample: str
    phase: Phase
    spec: GraphSpec
    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]


class Recorder(Backend):
    """Runs graphs with another backend and keeps what it sees.

    Of every sample it keeps the images, the prefill and the first decode step: later steps are
    like the first.

    Attributes:
        runs: what was kept, in order.
    """

    def __init__(self, backend: Backend) -> None:
        self.name = backend.name
        self.device = backend.device
        self.runs: list[GraphRun] = []
        self._backend = backend
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
        return _RecordedGraph(self, self._backend.open(file, spec), spec)

    def upload(self, array: NDArray[np.generic]) -> Tensor:
        """See ``Backend.upload``."""
        return self._backend.upload(array)

    def download(self, tensor: Tensor) -> NDArray[Any]:
        """See ``Backend.download``."""
        return self._backend.download(tensor)

    def take_rows(self, tensor: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """See ``Backend.take_rows``."""
        return self._backend.take_rows(tensor, rows)

    def record(
        self, spec: GraphSpec, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
    ) -> None:
        """Keep one run, unless it is a later decode step."""
        self._counts[spec.name] += 1
        if self._counts[spec.name] > 2:
            return
        first: Phase = "images" if spec.name == VISION_ENCODER else "prefill"
        self.runs.append(
            GraphRun(
                sample=self._sample,
                phase=first if self._counts[spec.name] == 1 else "decode",
                spec=spec,
                inputs={name: self._values(inputs[name]) for name in inputs},
                outputs={name: self._values(tensor) for name, tensor in outputs.items()},
            )
        )

    def _values(self, tensor: Tensor) -> NDArray[Any]:
        """Return a handle's values; what one graph gives and the next takes is kept once.

        A copy: what a backend downloads may live no longer than its handle.
        """
        if id(tensor) not in self._arrays:
            self._arrays[id(tensor)] = (tensor, self._backend.download(tensor).copy())
        return self._arrays[id(tensor)][1]


class _RecordedGraph(Graph):
    def __init__(self, recorder: Recorder, graph: Graph, spec: GraphSpec) -> None:
        self._recorder = recorder
        self._graph = graph
        self._spec = spec

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Graph.run``."""
        outputs = self._graph.run(inputs)
        self._recorder.record(self._spec, inputs, outputs)
        return outputs
