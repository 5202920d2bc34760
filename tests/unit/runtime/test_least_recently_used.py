from __future__ import annotations

from feather_edge.runtime.least_recently_used import LeastRecentlyUsed


def test_a_used_entry_outlives_an_older_one() -> None:
    cache = LeastRecentlyUsed(2)
    cache.put(b"a", 1)
    cache.put(b"b", 2)
    assert cache.get(b"a") == 1
    cache.put(b"c", 3)
    assert (cache.get(b"a"), cache.get(b"b"), cache.get(b"c"), len(cache)) == (1, None, 3, 2)
