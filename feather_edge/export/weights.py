"""Checkpoint tensors under one set of names, whatever the transformers version that saved them."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from feather_edge.checkpoint.packed import PackedLinear, check_groups, check_sizes
from feather_edge.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from feather_edge.checkpoint.reader import Checkpoint, TensorView


class Weights:
    """A checkpoint seen through canonical names.

    Args:
        checkpoint: where the tensors are.
        prefixes: (prefix in the checkpoint, canonical prefix), the first match wins.
        matrices: canonical names of kernels that are dense layers here: their dimensions after
            the first are one.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        prefixes: Sequence[tuple[str, str]],
        *,
        matrices: Collection[str] = (),
    ) -> None:
        self._checkpoint = checkpoint
        self._matrices = matrices
        self._names: dict[str, str] = {}
        self._used: set[str] = set()
        for name in checkpoint.names():
            for saved, canonical in prefixes:
                if name.startswith(saved):
                    self._names[canonical + name.removeprefix(saved)] = name
                    break

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def tensor(self, name: str, *, shape: tuple[int, ...]) -> TensorView:
        """Return the tensor called ``name`` here and mark it as used.

        Raises:
            CheckpointError: if the checkpoint has no such tensor, or it has another shape.
        """
        self._used.add(name)
        if not self._checkpoint.has_weights:
            return self._checkpoint.planned(name, shape)
        view = self._checkpoint.tensor(self._names.get(name, name))
        if name in self._matrices:
            view = dataclasses.replace(view, shape=(view.shape[0], math.prod(view.shape[1:])))
        if view.shape != shape:
            raise CheckpointError(
                f"tensor {view.name!r} has shape {list(view.shape)}, but config.json asks for "
                f"{list(shape)}; the checkpoint and its config do not match"
            )
        return view

    def is_packed(self, module: str) -> bool:
        """Return whether the checkpoint holds the dense layer ``module`` quantised."""
        return self._checkpoint.packed is not None and f"{module}.qweight" in self._names

    def packed_linear(self, module: str, *, in_size: int, out_size: int) -> PackedLinear:
        """Return a quantised dense layer of the checkpoint and mark its tensors as used.

        Raises:
            CheckpointError: if it misses a tensor, or one has another shape than it should.
            UnsupportedModelError: if its inputs are grouped out of order.
        """
        packed = self._checkpoint.packed
        if packed is None:
            raise CheckpointError(f"dense layer {module} is not quantised")
        group_size = packed.group_size or in_size
        check_sizes(module, in_size=in_size, out_size=out_size, group_size=group_size)
        num_groups = in_size // group_size
        words = (in_size, out_size // 8) if packed.method == "awq" else (in_size // 8, out_size)
        groups = f"{module}.g_idx"
        if groups in self._names:
            check_groups(self.tensor(groups, shape=(in_size,)), group_size)
        return PackedLinear(
            format=packed,
            in_size=in_size,
            out_size=out_size,
            qweight=self.tensor(f"{module}.qweight", shape=words),
            qzeros=self.tensor(f"{module}.qzeros", shape=(num_groups, out_size // 8)),
            scales_view=self.tensor(f"{module}.scales", shape=(num_groups, out_size)),
        )

    def below(self, prefix: str) -> dict[str, TensorView]:
        """Return all tensors below a canonical prefix, by the rest of their names, as used."""
        names = [name for name in self._names if name.startswith(prefix)]
        self._used.update(names)
        return {
            name.removeprefix(prefix): self._checkpoint.tensor(self._names[name]) for name in names
        }

    def check_all_used(self, *prefixes: str) -> None:
        """Refuse tensors below ``prefixes`` that no graph took: parts we would lose silently.

        Raises:
            CheckpointError: naming the first such tensor.
        """
        unused = sorted(
            name
            for name in self._names
            if name.startswith(prefixes) and name not in self._used and "rotary_emb" not in name
        )
        if unused:
            raise CheckpointError(
                f"tensor {self._names[unused[0]]!r} has no place in the exported graphs "
                f"({len(unused)} such); config.json describes a model without it, so the "
                f"checkpoint is a variant that is not supported"
            )
