"""A backend with an ear at the language head: what it says, and what is said in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feather_edge.errors import RequestError
from feather_edge.runtime.backend_names import GRAPH_BACKENDS, OPENVINO_BF16
from feather_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from feather_edge.runtime.backends.openvino import OpenVinoBackend
from feather_edge.runtime.backends.wrapped import WrappedBackend, WrappedGraph

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from feather_edge.graphs import GraphSpec
    from feather_edge.runtime.backends.base import Graph, Tensor

__all__ = ["TAPPED_BACKENDS", "LogitTap"]

TAPPED_BACKENDS = tuple(name for name in GRAPH_BACKENDS if name != "auto")
"""They open graphs that lie in memory."""


class LogitTap(WrappedBackend):
    """A backend on the CPU that keeps all logits.

    Args:
        name: of the backend, one of ``TAPPED_BACKENDS``.
        all_positions: of every row of a prompt; else of the last one, as graphs give them.

    Attributes:
        heard: logits since the last ``listen``, each as its graph gives it.

    Raises:
        RequestError: if the backend runs no graphs.
        BackendError: if it is not installed, or cannot run here.
    """

    def __init__(self, name: str = "onnxruntime", *, all_positions: bool = False) -> None:
        self._openable = _backend(name)
        super().__init__(self._openable)
        self.heard: list[NDArray[Any]] = []
        self._all_positions = all_positions
        self._script: Sequence[NDArray[Any]] | None = None

    def listen(self, script: Sequence[NDArray[Any]] | None = None) -> None:
        """Forget what was heard; say the logits of ``script``, step by step, instead of its own.

        So the caller goes on with the tokens of another model, and both see the same text.
        """
        self.heard = []
        self._script = script

    def open(self, file: Path, spec: GraphSpec) -> Graph:
        """See ``Backend.open``."""
        if all(tensor.name != "logits" for tensor in spec.outputs):
            return super().open(file, spec)
        if not self._all_positions:
            return _Tapped(super().open(file, spec), self)
        from feather_edge.export.all_positions import with_all_positions

        model, spec = with_all_positions(file, spec)
        return _Tapped(self._openable.open_model(model, spec, weights=file.parent), self)

    def take(self, logits: Tensor) -> Tensor:
        """Keep what a head said, and return what its caller is told."""
        step = len(self.heard)
        self.heard.append(self.download(logits))
        return logits if self._script is None else self.upload(self._script[step])


class _Tapped(WrappedGraph):
    def __init__(self, graph: Graph, tap: LogitTap) -> None:
        super().__init__(graph)
        self._tap = tap

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = super().run(inputs)
        return {**outputs, "logits": self._tap.take(outputs["logits"])}


def _backend(name: str) -> OnnxRuntimeBackend | OpenVinoBackend:
    if name not in TAPPED_BACKENDS:
        raise RequestError(
            f"a precision is measured with graphs, and backend {name} runs engines; choose "
            f"{', '.join(TAPPED_BACKENDS)}"
        )
    if name == "onnxruntime":
        return OnnxRuntimeBackend(device="cpu")
    return OpenVinoBackend(in_bf16=name == OPENVINO_BF16)
