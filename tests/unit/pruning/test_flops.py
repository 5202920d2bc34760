"""The paper's own figures: FEATHER section 3.1, equation 1, on Llama 2 7B with 729 tokens."""

from __future__ import annotations

from functools import partial

import pytest

from feather_edge.pruning import PruningSchedule
from feather_edge.pruning.flops import layer_macs, paper_layer_cost, schedule_cost
from feather_edge.pruning.selection import keep_count, stride_grid, union_size_if_independent

NUM_TOKENS = 729
NUM_LAYERS = 32
COST = partial(paper_layer_cost, hidden_size=4096, ffn_size=11008)
ENSEMBLE_75 = union_size_if_independent(NUM_TOKENS, 182, 81)


def reduction_percent(stages: tuple[int, ...], tokens: list[int]) -> float:
    schedule = PruningSchedule(num_layers=NUM_LAYERS, stages=stages)
    pruned = schedule_cost(schedule, [NUM_TOKENS, *tokens], COST)
    return 100 * (1 - pruned / (NUM_LAYERS * COST(NUM_TOKENS)))


@pytest.mark.parametrize(
    ("name", "stages", "tokens", "expected"),
    [
        ("FastV K=3 R=0.75", (3,), [182], 68.6),
        ("FastV K=8 R=0.75", (8,), [182], 56.8),
        ("uniform K=3 stride 2", (3,), [len(stride_grid(27, 27, 2))], 66.9),
        ("uniform K=8 stride 2", (8,), [len(stride_grid(27, 27, 2))], 55.4),
        ("ensemble K=3 R=0.75", (3,), [ENSEMBLE_75], 61.2),
        ("ensemble K=8 R=0.75", (8,), [ENSEMBLE_75], 50.6),
        ("FEATHER R=0.7", (8, 16), [275, keep_count(275, 0.3**2)], 64.2),
        ("PyramidDrop 0.3", (8, 16, 24), [218, 65, 19], 64.9),
        ("PyramidDrop 0.6", (8, 16, 24), [437, 262, 157], 46.2),
    ],
)
def test_published_reductions(
    name: str, stages: tuple[int, ...], tokens: list[int], expected: float
) -> None:
    assert reduction_percent(stages, tokens) == pytest.approx(expected, abs=0.06), name


def test_published_reduction_at_the_gentle_setting() -> None:
    top = keep_count(NUM_TOKENS, 0.6)
    first = union_size_if_independent(NUM_TOKENS, top, 81)
    second = keep_count(first, 0.6**2)

    assert second / NUM_TOKENS == pytest.approx(0.23, abs=0.005)
    assert reduction_percent((8, 16), [first, second]) == pytest.approx(47.9, abs=0.06)


def test_own_formula_counts_grouped_heads_and_three_mlp_matrices() -> None:
    # one row: q and o 8x8, k and v 8x4, logits and sum 8 each, three matrices 8x5
    macs = layer_macs(1, hidden_size=8, query_size=8, key_value_size=4, ffn_size=5)

    assert macs == 2 * 8 * 8 + 2 * 8 * 4 + 2 * 8 + 3 * 8 * 5


def test_own_formula_without_groups_is_the_paper_s_but_for_the_third_matrix() -> None:
    sizes = {"hidden_size": 64, "ffn_size": 96}
    macs = layer_macs(50, query_size=64, key_value_size=64, **sizes)

    assert macs == paper_layer_cost(50, **sizes) + 50 * 64 * 96


def test_schedule_cost_wants_a_size_for_every_segment() -> None:
    schedule = PruningSchedule(num_layers=8, stages=(2, 4))

    with pytest.raises(ValueError, match="zip"):
        schedule_cost(schedule, [10, 5], COST)
