"""Attention for packed questions: each sees the image and itself, and nothing else.

A general masked kernel spends most of a step on pairs that the mask removes. The layout is known,
so dense products do: the image prefix, causal, and the questions against the prefix and against
themselves. It computes what the mask would, and is used in training only.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn
    from transformers import PretrainedConfig

_NAME = "question_blocks"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedLayout:
    """Where the questions lie in one sequence.

    Attributes:
        prefix_length: positions that every question sees: the image and what is around it.
        groups: (number of questions, positions of each), in the order of the sequence.
    """

    prefix_length: int
    groups: tuple[tuple[int, int], ...]

    @property
    def num_text_positions(self) -> int:
        """Positions after the prefix."""
        return sum(count * length for count, length in self.groups)

    def positions(self) -> torch.Tensor:
        """Return position ids: every question stands where it would stand alone."""
        return torch.cat(
            [torch.arange(self.prefix_length), self.prefix_length + self.text_offsets()]
        )

    def text_offsets(self) -> torch.Tensor:
        """Return the place of every text position within its question."""
        return torch.cat([torch.arange(length).repeat(count) for count, length in self.groups])


def _future(length: int, like: torch.Tensor) -> torch.Tensor:
    """Return the causal bias [length, length]."""
    return torch.full((length, length), -math.inf, dtype=like.dtype).triu_(1)


def question_blocks(  # noqa: PLR0917 - the signature that transformers calls
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - the layout says it all
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within [prefix, question, question, ...].

    Args:
        module: the attention layer; its configuration carries the `PackedLayout`.
        query: [B, H, P + T, D] with P positions of prefix and T of text.
        key: [B, H_kv, P + T, D].
        value: as key.
        attention_mask: ignored.
        scaling: factor of the scores.

    Returns:
        [B, P + T, H, D], and None for the weights.
    """
    layout: PackedLayout = module.config.packed_layout
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    query = query * scaling
    prefix = layout.prefix_length
    sizes = [prefix, *(count * length for count, length in layout.groups)]
    queries, keys, values = (part.split(sizes, dim=2) for part in (query, key, value))
    scores = queries[0] @ keys[0].transpose(-1, -2) + _future(prefix, query)
    outs = [torch.softmax(scores, -1, dtype=scores.dtype) @ values[0]]
    for index, (count, length) in enumerate(layout.groups, start=1):
        text_query, text_value = queries[index], values[index]
        blocks = (*text_query.shape[:2], count, length, text_query.shape[-1])
        own = text_query.reshape(blocks) @ keys[index].reshape(blocks).transpose(-1, -2)
        own = (own + _future(length, query)).flatten(2, 3)
        seen = text_query @ keys[0].transpose(-1, -2)
        weights = torch.softmax(torch.cat([seen, own], -1), -1, dtype=seen.dtype)
        on_image, on_self = weights.split([prefix, length], dim=-1)
        on_self = on_self.unflatten(2, (count, length)) @ text_value.reshape(blocks)
        outs.append(on_image @ values[0] + on_self.flatten(2, 3))
    return torch.cat(outs, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, question_blocks)


@contextmanager
def packed_questions(config: PretrainedConfig, layout: PackedLayout) -> Iterator[None]:
    """Use `question_blocks` in the decoder of this configuration within the context."""
    before = config._attn_implementation
    config._attn_implementation, config.packed_layout = _NAME, layout
    try:
        yield
    finally:
        config._attn_implementation = before
        del config.packed_layout
