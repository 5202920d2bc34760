"""A backend that computes nothing, so that programs around a session can be tested anywhere.

Shapes, pruning and caches behave as with a real backend; only the values are made up: every score
is 0, and the answer is the list of token ids the test asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from feather_edge.errors import BackendError
from feather_edge.pruning.selection import top_k_uniform_gather
from feather_edge.runtime.backends.base import Backend, Graph, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from feather_edge.graphs import GraphSpec


class FakeBackend(Backend):
    """Answers with ``token_ids`` in order, over and over.

    Inputs are checked against the graph's contract, so a test with this backend fails where a
    real one would.
    """

    name = "fake"
    device = "cpu"
    continues_prompts = True

    def __init__(self, *, token_ids: Sequence[int]) -> None:
        if not token_ids:
            raise BackendError("FakeBackend needs at least one token id to answer with")
        self._token_ids = tuple(token_ids)

    def open(self, file: Path, spec: GraphSpec) -> Graph:  # noqa: ARG002 - nothing to load
        """See ``Backend.open``."""
        return _FakeGraph(spec, self._answers())

    def upload(self, array: NDArray[np.generic]) -> Tensor:
        """See ``Backend.upload``."""
        return array

    def download(self, tensor: Tensor) -> NDArray[Any]:
        """See ``Backend.download``."""
        array: NDArray[Any] = tensor
        return array

    def _answers(self) -> Iterator[int]:
        while True:
            yield from self._token_ids


class _FakeGraph(Graph):
    def __init__(self, spec: GraphSpec, answers: Iterator[int]) -> None:
        self.spec = spec
        self._answers = answers

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        sizes = self._sizes(inputs)
        if "image_features" in {tensor.name for tensor in self.spec.outputs}:
            # Without inputs of so many rows, the contract does not say how many visual tokens
            # there are: one row stands for them all.
            sizes.setdefault("visual_tokens", 1)
        outputs: dict[str, Tensor] = {}
        if "num_kept" in inputs:
            outputs = self._prune(inputs)
            sizes["kept"] = outputs["kept_indices"].shape[1]
        outputs |= {name: inputs[past] for name, past in self.spec.caches_in_place.items()}
        for tensor in self.spec.outputs:
            shape = tuple(sizes.get(d, 0) if isinstance(d, str) else d for d in tensor.shape)
            outputs.setdefault(tensor.name, np.zeros(shape, tensor.dtype))
        if "logits" in outputs:
            outputs["logits"][..., next(self._answers)] = 1.0
        return outputs

    def _sizes(self, inputs: Mapping[str, Tensor]) -> dict[str, int]:
        """Return the size of every named dimension; refuse inputs that break the contract."""
        sizes: dict[str, int] = {}
        for tensor in self.spec.inputs:
            given = inputs.get(tensor.name)
            if given is None:
                raise BackendError(f"graph {self.spec.name} misses input {tensor.name}")
            expected = tuple(
                sizes.setdefault(dim, size) if isinstance(dim, str) else dim
                for dim, size in zip(tensor.shape, given.shape, strict=False)
            )
            if given.shape != expected or given.dtype != tensor.dtype:
                raise BackendError(
                    f"graph {self.spec.name} got {tensor.name} as {given.dtype} "
                    f"{list(given.shape)}, but takes {tensor.dtype} {list(tensor.shape)}"
                )
        return sizes

    def _prune(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scores = np.zeros(inputs["prune_priority"].shape, np.float32)
        entry = self.spec.inputs[0].name
        per_batch = [
            top_k_uniform_gather(
                scores[b],
                inputs["prune_priority"][b],
                int(inputs["num_kept"][0]),
                *(inputs[name][b] for name in (entry, "cos", "sin")),
            )
            for b in range(len(scores))
        ]
        names = ("kept_indices", "kept_hidden_states", "kept_cos", "kept_sin")
        stacked = (np.stack(part) for part in zip(*per_batch, strict=True))
        return {**dict(zip(names, stacked, strict=True)), "scores": scores}
