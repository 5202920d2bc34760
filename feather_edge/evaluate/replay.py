"""Running graphs again on the inputs that a reference had, and comparing what leaves them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from feather_edge.evaluate.cache_forms import as_grown_outputs, as_taken_by
from feather_edge.evaluate.parity import compare, is_top_k, overlap
from feather_edge.evaluate.parity_report import KeptReport, TensorReport

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from feather_edge.bundle import Bundle
    from feather_edge.evaluate.recording import GraphRun
    from feather_edge.runtime.backends import Backend

__all__ = ["replay"]

KEPT_ROWS = ("kept_hidden_states", "kept_cos", "kept_sin")


def replay(
    runs: Sequence[GraphRun], bundle: Bundle, backend: Backend
) -> tuple[list[TensorReport], list[KeptReport]]:
    """Run every graph again on the inputs of the reference.

    Args:
        runs: of the reference, in order.
        bundle: whose graphs.
        backend: that runs them now.

    Returns:
        How far all outputs are apart, run by run, and which rows each pruning kept.
    """
    graphs = {
        spec.name: backend.open(bundle.path / spec.file, spec)
        for spec in (bundle.vision_encoder, *bundle.decoders)
    }
    tensors: list[TensorReport] = []
    kept: list[KeptReport] = []
    for run in runs:
        graph = graphs[run.spec.name]
        taken, num_total = as_taken_by(graph, run.inputs)
        outputs = graph.run({name: backend.upload(values) for name, values in taken.items()})
        found = as_grown_outputs(
            graph,
            {name: backend.download(tensor) for name, tensor in outputs.items()},
            num_total=num_total,
        )
        if "kept_indices" in found:
            report = _compare_kept(run, found)
            kept += [report] if run.phase == "prefill" else []
        tensors += _compare_tensors(run, found)
    return tensors, kept


def _compare_kept(run: GraphRun, found: dict[str, NDArray[Any]]) -> KeptReport:
    kept = found["kept_indices"][0]
    return KeptReport(
        graph=run.spec.name,
        sample=run.sample,
        overlap=overlap(kept, run.outputs["kept_indices"][0]),
        is_top_k=is_top_k(kept, found["scores"][0], run.inputs["prune_priority"][0]),
    )


def _compare_tensors(run: GraphRun, found: dict[str, NDArray[Any]]) -> Iterator[TensorReport]:
    """Compare all outputs of a run; of rows that were kept, those that both kept."""
    for name in run.outputs:
        if name == "kept_indices":
            continue
        values, reference = found[name], run.outputs[name]
        if name in KEPT_ROWS:
            _, here, there = np.intersect1d(
                found["kept_indices"][0], run.outputs["kept_indices"][0], return_indices=True
            )
            values, reference = values[:, here], reference[:, there]
        yield TensorReport(
            graph=run.spec.name,
            phase=run.phase,
            tensor=name,
            sample=run.sample,
            **msgspec.structs.asdict(compare(values, reference)),
        )
