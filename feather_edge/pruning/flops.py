"""What a prefill costs, and what pruning takes off it, in multiply-accumulates.

Two formulas, never mixed:

* ``layer_macs`` counts what our graphs execute: all rows, grouped key/value heads, the three
  matrices of a gated MLP, full (not causal-half) attention.
* ``paper_layer_cost`` is FEATHER's equation 1, ``4 n d^2 + 2 n^2 d + 2 n d m``: visual tokens
  only, two MLP matrices, no grouping. Only for comparison with published reductions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from feather_edge.pruning.schedule import PruningSchedule


def layer_macs(
    num_rows: int, *, hidden_size: int, query_size: int, key_value_size: int, ffn_size: int
) -> int:
    """Return the multiply-accumulates of one decoder layer over ``num_rows`` positions.

    ``query_size`` is H * Dh and ``key_value_size`` Hkv * Dh, in numbers of channels.
    """
    projections = num_rows * hidden_size * 2 * (query_size + key_value_size)
    attention = 2 * num_rows**2 * query_size
    return projections + attention + 3 * num_rows * hidden_size * ffn_size


def paper_layer_cost(num_visual_tokens: int, *, hidden_size: int, ffn_size: int) -> int:
    """Return C(n) of FEATHER section 3.1, equation 1."""
    n, d, m = num_visual_tokens, hidden_size, ffn_size
    return 4 * n * d**2 + 2 * n**2 * d + 2 * n * d * m


def segment_costs(
    schedule: PruningSchedule, tokens_per_segment: Sequence[int], cost: Callable[[int], int]
) -> list[int]:
    """Return each segment's cost when segment i runs over ``tokens_per_segment[i]`` tokens."""
    return [
        segment.num_layers * cost(tokens)
        for segment, tokens in zip(schedule.segments, tokens_per_segment, strict=True)
    ]


def schedule_cost(
    schedule: PruningSchedule, tokens_per_segment: Sequence[int], cost: Callable[[int], int]
) -> int:
    """Return the cost of all layers; see ``segment_costs``."""
    return sum(segment_costs(schedule, tokens_per_segment, cost))
