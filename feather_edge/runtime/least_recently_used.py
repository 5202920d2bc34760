"""What a session remembers from request to request, bounded by a number of entries."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

__all__ = ["LeastRecentlyUsed"]


class LeastRecentlyUsed:
    """Entries by key, the most recently used ones; used by one thread at a time.

    Args:
        capacity: entries that are kept; 0 keeps none.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._entries: OrderedDict[bytes, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Any | None:
        """Return an entry, which is now the last to be dropped; None if there is none."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: bytes, entry: Any) -> None:
        """Keep an entry, and drop the one that was not used for longest if there are too many."""
        self._entries[key] = entry
        self._entries.move_to_end(key)
        while len(self._entries) > self.capacity:
            self._entries.popitem(last=False)
