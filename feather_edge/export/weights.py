"""Checkpoint tensors under one set of names, whatever the transformers version that saved them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from feather_edge.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feather_edge.checkpoint.reader import Checkpoint, TensorView


class Weights:
    """A checkpoint seen through canonical names.

    Args:
        checkpoint: where the tensors are.
        prefixes: (prefix in the checkpoint, canonical prefix), the first match wins.
    """

    def __init__(self, checkpoint: Checkpoint, prefixes: Sequence[tuple[str, str]]) -> None:
        self._checkpoint = checkpoint
        self._names: dict[str, str] = {}
        self._used: set[str] = set()
        for name in checkpoint.names():
            for saved, canonical in prefixes:
                if name.startswith(saved):
                    self._names[canonical + name.removeprefix(saved)] = name
                    break

    def tensor(self, name: str, *, shape: tuple[int, ...]) -> TensorView:
        """Return the tensor called ``name`` here and mark it as used.

        Raises:
            CheckpointError: if the checkpoint has no such tensor, or it has another shape.
        """
        self._used.add(name)
        view = self._checkpoint.tensor(self._names.get(name, name))
        if view.shape != shape:
            raise CheckpointError(
                f"tensor {view.name!r} has shape {list(view.shape)}, but config.json asks for "
                f"{list(shape)}; the checkpoint and its config do not match"
            )
        return view

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
