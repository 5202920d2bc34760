"""What a decoder's prefill costs, from a bundle's sizes and the tokens that each segment saw."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from feather_edge.pruning.flops import layer_macs, segment_costs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feather_edge.bundle import Bundle

__all__ = ["prefill_flops", "segment_flops"]


def prefill_flops(bundle: Bundle, num_visual_tokens: Sequence[int], num_text_tokens: int) -> int:
    """Return the floating-point operations of one prefill; arguments as of ``segment_flops``."""
    return sum(segment_flops(bundle, num_visual_tokens, num_text_tokens))


def segment_flops(
    bundle: Bundle, num_visual_tokens: Sequence[int], num_text_tokens: int
) -> list[int]:
    """Return the floating-point operations of each segment's layers in one prefill.

    Args:
        bundle: an opened bundle.
        num_visual_tokens: visual tokens that enter each segment.
        num_text_tokens: all other tokens of the prompt; they are never pruned.
    """
    shape = bundle.manifest.decoder
    cost = partial(
        layer_macs,
        hidden_size=shape.hidden_size,
        query_size=shape.num_attention_heads * shape.head_dim,
        key_value_size=shape.num_key_value_heads * shape.head_dim,
        ffn_size=shape.intermediate_size,
    )
    rows = [count + num_text_tokens for count in num_visual_tokens]
    return [2 * macs for macs in segment_costs(bundle.schedule, rows, cost)]
