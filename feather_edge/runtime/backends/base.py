"""The seam between the chain of graphs and what executes them.

A backend opens graphs and runs them on named tensors. Tensors are the backend's own handles: what
one graph returns can be fed to the next without a look from the host, so on a GPU they stay there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from feather_edge.graphs import DType, GraphSpec

Tensor = Any
"""A backend's handle of a tensor, wherever it lies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphLimits:
    """Sizes that an opened graph is bound to; None where it takes any.

    Attributes:
        max_rows: S of a prefill.
        max_kept: K, the rows that leave.
        capacity: C of its caches in place.
    """

    max_rows: int | None = None
    max_kept: int | None = None
    capacity: int | None = None


class Graph(ABC):
    """An opened graph.

    Attributes:
        spec: with the contract of the form that runs.
        limits: sizes that it is bound to.
    """

    spec: GraphSpec
    limits = GraphLimits()

    @abstractmethod
    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run on all inputs of the graph's contract and return all its outputs.

        A cache that is updated in place comes back as the tensor that was given.

        Raises:
            BackendError: if the runtime fails.
        """


class Backend(ABC):
    """Something that executes graphs.

    Attributes:
        name: as users write it: ``onnxruntime``, ``fake``.
        device: where tensors lie: ``cpu``, ``cuda``.
        num_threads: of one graph run, where it was asked for; None is the backend's own choice.
        target: whose engines it runs; None where it runs graphs.
        opens_in_parallel: whether several threads may open graphs at once.
        choice: why this backend was chosen, where ``auto`` chose it by measurements.
    """

    name: str
    device: str
    num_threads: int | None = None
    target: str | None = None
    opens_in_parallel: bool = False
    choice: str | None = None

    @property
    def continues_prompts(self) -> bool:
        """Whether a run may take several rows after a cache that is not empty.

        The rest of a prompt does whose first tokens are known from an earlier request.
        """
        return False

    @property
    def notes(self) -> tuple[str, ...]:
        """What users should know of how graphs run here, such as why something is not used."""
        return () if self.choice is None else (self.choice,)

    @abstractmethod
    def open(self, file: Path, spec: GraphSpec) -> Graph:
        """Open the graph in ``file``, whose contract is ``spec``.

        Raises:
            BackendError: if the file cannot be loaded.
        """

    @abstractmethod
    def upload(self, array: NDArray[np.generic]) -> Tensor:
        """Return a handle of ``array``. The array must not change while the handle is used."""

    @abstractmethod
    def download(self, tensor: Tensor) -> NDArray[Any]:
        """Return the values behind a handle."""

    def zeros(self, shape: tuple[int, ...], dtype: DType) -> Tensor:
        """Return a handle of zeros that a graph may update in place."""
        return self.upload(np.zeros(shape, dtype))

    def take_rows(self, tensor: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """Return ``rows`` of a tensor [B, S, ...] as a tensor [B, K, ...]."""
        return self.upload(np.ascontiguousarray(self.download(tensor)[:, rows]))

    def device_bytes(self) -> int | None:
        """Return the device memory in use for this backend; None where it cannot say."""
        return None
