"""Low-rank adapters on the linear layers of a frozen decoder (Hu et al., 2021)."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from transformers import LlamaModel

_ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class _MergedProduct(torch.autograd.Function):
    """x @ merged.T, where merged = frozen + up @ down; gradients for x, down and up.

    One full-size product forward and one backward, and no full-size sums.
    """

    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, frozen: torch.Tensor, down: torch.Tensor, up: torch.Tensor
    ) -> torch.Tensor:
        """Return the product; every tensor has the type of values."""
        merged = torch.addmm(frozen, up, down)
        ctx.save_for_backward(values, merged, down, up)
        return functional.linear(values, merged)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return gradients of values, down and up; the frozen weight has none."""
        values, merged, down, up = ctx.saved_tensors
        flat, seen = gradient.flatten(0, -2), values.flatten(0, -2)
        inner = flat @ up
        of_up = flat.T @ (seen @ down.T)
        return (flat @ merged).view_as(values), None, inner.T @ seen, of_up


class AdaptedLinear(nn.Module):
    """A frozen linear layer plus scale * up(down(x)); zero at first."""

    def __init__(self, frozen: nn.Linear, *, rank: int, scale: float) -> None:
        super().__init__()
        self.frozen, self.scale, self.enabled = frozen, scale, True
        self.down = nn.Parameter(torch.randn(rank, frozen.in_features) / frozen.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(frozen.out_features, rank))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the adapted product, in the type of values."""
        if not self.enabled:
            return functional.linear(values, self.frozen.weight)
        down = self.down.to(values.dtype)
        up = (self.scale * self.up).to(values.dtype)
        return _MergedProduct.apply(values, self.frozen.weight, down, up)

    @torch.no_grad()
    def merged(self) -> torch.Tensor:
        """Return the float32 weight of the one linear layer that computes the same."""
        return self.frozen.weight.float() + self.scale * (self.up @ self.down)


@contextmanager
def untouched(layers: Collection[AdaptedLinear]) -> Iterator[None]:
    """Let the frozen layers alone compute within the context."""
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True


def adapt(decoder: LlamaModel, *, rank: int, scale: float) -> dict[str, AdaptedLinear]:
    """Freeze the decoder, replace its attention and MLP layers in place, and return these."""
    decoder.requires_grad_(False)
    adapted = {}
    for name, module in list(decoder.named_modules()):
        kind = name.rpartition(".")[2]
        if isinstance(module, nn.Linear) and kind in _ADAPTED:
            adapted[name] = AdaptedLinear(module, rank=rank, scale=scale)
            decoder.set_submodule(name, adapted[name])
    return adapted
