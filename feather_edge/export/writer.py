"""Writing the graphs of a bundle: every form of a graph, one file of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from feather_edge.engines.static_check import check_portable
from feather_edge.export.builder import GraphBuilder, save
from feather_edge.export.dialects import DIALECTS

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from feather_edge.export.layout import GraphPart
    from feather_edge.export.weights import Weights
    from feather_edge.graphs import GraphSpec


class Progress(Protocol):
    """Called while weights are written."""

    def __call__(self, label: str, num_done_bytes: int, num_total_bytes: int) -> None:
        """Report that ``num_done_bytes`` of ``num_total_bytes`` of graph ``label`` are written."""
        ...


@dataclass(frozen=True, kw_only=True)
class GraphWriter:
    """Writes graphs into the bundle folder ``folder``."""

    folder: Path
    weights: Weights
    on_progress: Progress | None

    def write(self, part: GraphPart) -> GraphSpec:
        """Compose the graph in each form of its contract and write it; returns the contract.

        Each form is held against what its TensorRT reads before anything is written.
        """
        spec, precision = part.spec, part.precision
        models = {}
        for form in spec.forms:
            builder = GraphBuilder(
                spec.of(form), self.weights, precision=precision, dialect=DIALECTS[form.opset]
            )
            model = part.compose(builder)
            if not precision.is_dynamic:  # no TensorRT reads that
                check_portable(model, name=spec.name, opset=form.opset)
            models[self.folder / form.file] = model
        total = _weight_bytes(next(iter(models.values())))
        num_done = 0

        def on_tensor(num_bytes: int) -> None:
            nonlocal num_done
            num_done += num_bytes
            if self.on_progress is not None:
                self.on_progress(spec.name, num_done, total)

        save(models, self.folder / spec.weights_file, on_tensor=on_tensor)
        return spec


def _weight_bytes(model: ir.Model) -> int:
    return sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
