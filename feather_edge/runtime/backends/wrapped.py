"""A backend that does something else beside what another one does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feather_edge.runtime.backends.base import Backend, Graph, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from feather_edge.graphs import DType, GraphSpec

__all__ = ["WrappedBackend", "WrappedGraph"]


class WrappedBackend(Backend):
    """Does all as ``backend`` does, opening graphs one after the other."""

    def __init__(self, backend: Backend) -> None:
        self.name = backend.name
        self.device = backend.device
        self.backend = backend

    @property
    def notes(self) -> tuple[str, ...]:
        """See ``Backend.notes``."""
        return self.backend.notes

    def open(self, file: Path, spec: GraphSpec) -> Graph:
        """See ``Backend.open``."""
        return self.backend.open(file, spec)

    def upload(self, array: NDArray[np.generic]) -> Tensor:
        """See ``Backend.upload``."""
        return self.backend.upload(array)

    def download(self, tensor: Tensor) -> NDArray[Any]:
        """See ``Backend.download``."""
        return self.backend.download(tensor)

    def zeros(self, shape: tuple[int, ...], dtype: DType) -> Tensor:
        """See ``Backend.zeros``."""
        return self.backend.zeros(shape, dtype)

    def take_rows(self, tensor: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """See ``Backend.take_rows``."""
        return self.backend.take_rows(tensor, rows)


class WrappedGraph(Graph):
    """Runs as ``graph`` does."""

    def __init__(self, graph: Graph) -> None:
        self.spec = graph.spec
        self.limits = graph.limits
        self.graph = graph

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Graph.run``."""
        return self.graph.run(inputs)
