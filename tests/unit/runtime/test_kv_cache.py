from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from feather_edge.errors import BackendError
from feather_edge.graphs import DecoderShape, decoder_spec
from feather_edge.runtime.backends import FakeBackend, Graph
from feather_edge.runtime.backends.base import GraphLimits
from feather_edge.runtime.kv_cache import SEEN_STEP, num_seen_slots, segment_cache

if TYPE_CHECKING:
    from feather_edge.runtime.kv_cache import SegmentCache

SHAPE = DecoderShape(
    num_layers=6,
    hidden_size=32,
    intermediate_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=50,
)
NAMES = [f"{layer}.{part}" for layer in (2, 3) for part in ("key", "value")]


class SomeGraph(Graph):
    def __init__(self, opset: int, capacity: int | None = None) -> None:
        self.spec = decoder_spec(
            1, range(2, 4), SHAPE, is_last=True, dtype="float16", opsets=(opset,)
        )
        self.limits = GraphLimits(capacity=capacity)

    def run(self, inputs: Any) -> dict[str, Any]:
        raise NotImplementedError


def make_cache(opset: int, *, capacity: int | None = None) -> SegmentCache:
    graph = SomeGraph(opset, capacity)
    return segment_cache(graph, FakeBackend(token_ids=[1]), max_new_tokens=3)


def test_a_grown_cache_starts_empty_with_the_layers_of_its_segment() -> None:
    cache = make_cache(23)

    assert (cache.length, cache.num_seen(4)) == (0, 4)
    assert list(cache.inputs(4)) == [f"past_key_values.{name}" for name in NAMES]
    for tensor in cache.inputs(4).values():
        assert tensor.shape == (1, 2, 0, 8)
        assert tensor.dtype == np.float16


def test_a_grown_cache_takes_over_what_the_graph_gives() -> None:
    cache = make_cache(23)
    for num_new, total in ((5, 5), (1, 6)):
        given = {f"present.{n}": np.full((1, 2, total, 8), i) for i, n in enumerate(NAMES)}

        cache.update({**given, "logits": np.zeros(3)}, num_new=num_new)

        assert (cache.length, cache.num_seen(1)) == (total, total + 1)
        for number, name in enumerate(NAMES):
            assert cache.inputs(1)[f"past_key_values.{name}"] is given[f"present.{name}"]
            assert (cache.inputs(1)[f"past_key_values.{name}"] == number).all()


def test_a_cache_in_place_has_room_for_prompt_and_answer_and_stays() -> None:
    cache = make_cache(24)
    first = cache.inputs(5)
    assert list(first) == [f"past_key_values.{name}" for name in NAMES] + ["write_indices"]
    assert first.pop("write_indices").tolist() == [0]
    for tensor in first.values():
        assert (tensor.shape, tensor.dtype) == ((1, 2, 5 + 3, 8), np.float16)
        assert not tensor.any(), "attention may meet no NaN in an empty slot"
    for num_new in (5, 1):
        start = cache.length
        outputs = {f"present.{name}": first[f"past_key_values.{name}"] for name in NAMES}
        cache.update(outputs, num_new=num_new)
        inputs = cache.inputs(1)
        assert inputs["write_indices"].tolist() == [start + num_new]
        assert all(inputs[name] is tensor for name, tensor in first.items())


def test_the_capacity_is_the_graphs_own_if_it_has_one() -> None:
    cache = make_cache(24, capacity=7)
    assert cache.inputs(5)["past_key_values.2.key"].shape == (1, 2, 7, 8)
    assert cache.num_seen(5) == 5
    cache.update(cache_outputs(cache), num_new=5)
    assert cache.num_seen(1) == 7
    with pytest.raises(BackendError, match="graph decoder_1 has room for 7 tokens, but 8 are"):
        cache.inputs(3)


@pytest.mark.parametrize("opset", [23, 24])
def test_a_cache_can_start_with_the_first_slots_of_another(opset: int) -> None:
    rng = np.random.default_rng(0)
    full = {f"present.{n}": rng.standard_normal((1, 2, 9, 8)).astype(np.float16) for n in NAMES}
    other = make_cache(opset)
    other.update(full, num_new=9)
    slots = other.first_slots(4)
    unchanged = {name: values.copy() for name, values in slots.items()}

    cache = make_cache(opset)
    cache.preload(slots)
    inputs = cache.inputs(5)

    assert cache.length == 4
    start = inputs.pop("write_indices", None)
    assert opset == 23 or start.tolist() == [4]
    for name, tensor in inputs.items():
        assert (tensor.shape, tensor.dtype) == ((1, 2, 4 if opset == 23 else 4 + 5 + 3, 8), "f2")
        np.testing.assert_array_equal(
            tensor[:, :, :4], full[name.replace("past_key_values", "present")][:, :, :4]
        )
        assert not tensor[:, :, 4:].any()
    if opset == 24:  # a graph writes into its own memory, not into what is remembered
        for tensor in inputs.values():
            tensor[:] = 7
    for name, values in unchanged.items():
        np.testing.assert_array_equal(slots[name], values)
        assert slots[name].base is None, "a view would keep all slots alive"


def cache_outputs(cache: SegmentCache) -> dict[str, Any]:
    inputs = cache.inputs(1)
    return {f"present.{name}": inputs[f"past_key_values.{name}"] for name in NAMES}


def test_decode_steps_see_the_same_number_of_slots_for_long() -> None:
    seen = [num_seen_slots(length, 1000) for length in range(1, 1001)]
    assert set(seen) == {SEEN_STEP, 2 * SEEN_STEP, 3 * SEEN_STEP, 1000}
    assert all(length <= slots for length, slots in enumerate(seen, 1))
    assert num_seen_slots(3, 100) == 100


@pytest.mark.parametrize("opset", [23, 24])
def test_caches_are_separate(opset: int) -> None:
    first, second = make_cache(opset), make_cache(opset)

    first.inputs(3)
    first.update({f"present.{name}": np.zeros((1, 2, 3, 8)) for name in NAMES}, num_new=3)

    assert (first.length, second.length) == (3, 0)
