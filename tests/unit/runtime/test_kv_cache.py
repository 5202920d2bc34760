from __future__ import annotations

import numpy as np

from feather_edge.graphs import DecoderShape
from feather_edge.pruning import Segment
from feather_edge.runtime.backends import FakeBackend
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


def make_cache() -> SegmentCache:
    segment = Segment(first_layer=2, last_layer=3)
    return SegmentCache(segment, SHAPE, backend=FakeBackend(token_ids=[1]), dtype="float16")


def test_starts_empty_with_the_layers_of_its_segment() -> None:
    cache = make_cache()

    assert cache.length == 0
    assert list(cache.inputs()) == [f"past_key_values.{name}" for name in NAMES]
    for tensor in cache.inputs().values():
        assert tensor.shape == (1, 2, 0, 8)
        assert tensor.dtype == np.float16


def test_takes_over_what_the_graph_gives() -> None:
    cache = make_cache()
    for num_new, total in ((5, 5), (1, 6)):
        given = {f"present.{n}": np.full((1, 2, total, 8), i) for i, n in enumerate(NAMES)}

        cache.update({**given, "logits": np.zeros(3)}, num_new=num_new)

        assert cache.length == total
        for number, name in enumerate(NAMES):
            assert cache.inputs()[f"past_key_values.{name}"] is given[f"present.{name}"]
            assert (cache.inputs()[f"past_key_values.{name}"] == number).all()


def test_caches_are_separate() -> None:
    first, second = make_cache(), make_cache()

    first.update({f"present.{name}": np.zeros((1, 2, 3, 8)) for name in NAMES}, num_new=3)

    assert second.length == 0
