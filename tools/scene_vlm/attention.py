"""Attention for packed questions: each sees the image and itself, and nothing else.

A general masked kernel spends most of a step on pairs that the mask removes. The layout is known,
so two dense products per layer do: the image prefix, causal, and the questions against the prefix
and against themselves. It computes what the mask would, and is used in training only.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface
from vocabulary import NUM_VISUAL_TOKENS, QUESTION_LENGTH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn
    from transformers import LlavaForConditionalGeneration

PREFIX_LENGTH = 1 + NUM_VISUAL_TOKENS
_NAME = "question_blocks"


def _future(length: int, like: torch.Tensor) -> torch.Tensor:
    """Return the causal bias [length, length]."""
    return torch.full((length, length), -math.inf, dtype=like.dtype).triu_(1)


def question_blocks(  # noqa: PLR0917 - the signature that transformers calls
    module: nn.Module,  # noqa: ARG001
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - the layout says it all
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within [prefix, question, question, ...].

    Args:
        module: the attention layer.
        query: [B, H, 197 + Q * L, D].
        key: [B, H_kv, 197 + Q * L, D].
        value: as key.
        attention_mask: ignored.
        scaling: factor of the scores.

    Returns:
        [B, 197 + Q * L, H, D], and None for the weights.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    query = query * scaling
    size, heads, total, width = query.shape
    text = total - PREFIX_LENGTH
    split = [PREFIX_LENGTH, text]
    image_query, text_query = query.split(split, dim=2)
    image_key, text_key = key.split(split, dim=2)
    image_value, text_value = value.split(split, dim=2)

    scores = image_query @ image_key.transpose(-1, -2) + _future(PREFIX_LENGTH, query)
    image_out = torch.softmax(scores, -1, dtype=scores.dtype) @ image_value

    blocks = (size, heads, text // QUESTION_LENGTH, QUESTION_LENGTH, width)
    own = text_query.reshape(blocks) @ text_key.reshape(blocks).transpose(-1, -2)
    own = (own + _future(QUESTION_LENGTH, query)).reshape(size, heads, text, QUESTION_LENGTH)
    seen = text_query @ image_key.transpose(-1, -2)
    weights = torch.softmax(torch.cat([seen, own], -1), -1, dtype=seen.dtype)
    on_image, on_self = weights.split([PREFIX_LENGTH, QUESTION_LENGTH], dim=-1)
    on_self = on_self.reshape(*blocks[:4], QUESTION_LENGTH) @ text_value.reshape(blocks)
    text_out = on_image @ image_value + on_self.reshape(size, heads, text, width)
    return torch.cat([image_out, text_out], dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, question_blocks)


@contextmanager
def packed_questions(model: LlavaForConditionalGeneration) -> Iterator[None]:
    """Use `question_blocks` in the decoder within the context."""
    config = model.model.language_model.config
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before
