"""A checkpoint twice: as a session of its bundle, and as the torch reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from support.reference import ReferencePruning, ReferenceVlm

from feather_edge import Session
from feather_edge.pruning import Pruning
from feather_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from feather_edge.runtime.backends.wrapped import WrappedGraph

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from support.bundles import Exported

    from feather_edge.graphs import GraphSpec
    from feather_edge.runtime.backends.base import Graph
    from feather_edge.runtime.result import Result

__all__ = ["SCORE_TOLERANCE", "TIE_GAP", "Pair", "TracingBackend", "open_pair", "options"]

TIE_GAP = 1e-6
"""Scores closer than this may be ranked either way by two float32 softmaxes."""

SCORE_TOLERANCE = 1e-5


class TracingBackend(OnnxRuntimeBackend):
    """ONNX Runtime on one CPU thread, which keeps what enters and leaves the decoder.

    Attributes:
        embeds: [S, D] of every prefill.
        logits: [V] of every prefill and decode step.
    """

    def __init__(self) -> None:
        super().__init__(device="cpu", num_threads=1)
        self.embeds: list[np.ndarray] = []
        self.logits: list[np.ndarray] = []

    def open(self, file: Path, spec: GraphSpec) -> Graph:
        return _TracedGraph(self, super().open(file, spec))

    def clear(self) -> None:
        """Forget what was kept."""
        self.embeds.clear()
        self.logits.clear()


class _TracedGraph(WrappedGraph):
    def __init__(self, backend: TracingBackend, graph: Graph) -> None:
        super().__init__(graph)
        self._backend = backend

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        outputs = super().run(inputs)
        download = self._backend.download
        if (
            "inputs_embeds" in inputs
            and (embeds := download(inputs["inputs_embeds"])[0]).shape[0] > 1
        ):
            self._backend.embeds.append(embeds.copy())
        if "logits" in outputs:
            self._backend.logits.append(download(outputs["logits"])[0, -1].copy())
        return outputs


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The same checkpoint as a session and as the reference, and what the session's graphs saw."""

    session: Session
    reference: ReferenceVlm
    trace: TracingBackend

    def run(
        self,
        images: Sequence[np.ndarray],
        prompt: str,
        pruning: ReferencePruning | None,
        *,
        max_new_tokens: int = 12,
    ) -> bool:
        """Answer with both and compare; returns whether a tie at the cut set them apart."""
        result = self.session.generate(
            images, prompt, pruning=options(pruning), max_new_tokens=max_new_tokens
        )
        inputs = self.reference.prepare(list(images), prompt)
        expected = self.reference.run(inputs, pruning, max_new_tokens=max_new_tokens)
        if pruning is not None and self._differs_by_tie(result, expected.stages):
            return True
        assert list(result.token_ids) == expected.token_ids
        return False

    @staticmethod
    def _differs_by_tie(result: Result, stages: Sequence[Any]) -> bool:
        assert len(result.stages) == len(stages)
        for ours, theirs in zip(result.stages, stages, strict=True):
            assert ours.before_layer == theirs.before_layer
            alive = list(theirs.scores)
            np.testing.assert_allclose(
                ours.scores[alive], list(theirs.scores.values()), atol=SCORE_TOLERANCE
            )
            if ours.kept_indices.tolist() != theirs.kept:
                assert theirs.cut_gap < TIE_GAP
                return True  # what follows is of two different, equally good choices
        return False


def options(pruning: ReferencePruning | None) -> Pruning:
    """The request that asks for what the reference is told to do."""
    if pruning is None:
        return Pruning(criterion="none")
    return Pruning(
        criterion=pruning.method,
        keep_ratio=pruning.keep_ratio,
        stride=pruning.stride,
        selection=pruning.selection,
    )


def open_pair(exported: Exported, reference: type[ReferenceVlm] = ReferenceVlm) -> Pair:
    """Open a bundle and, with ``reference``, the checkpoint it was made from."""
    torch.set_num_threads(1)
    backend = TracingBackend()
    return Pair(
        session=Session.open(exported.bundle, backend=backend),
        reference=reference(exported.checkpoint),
        trace=backend,
    )
