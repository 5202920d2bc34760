"""Wall-clock stage times of one request, in milliseconds."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Stopwatch:
    """Measures named stages and the arrival of tokens since its creation."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._first_token = self._last_token = self._start
        self._num_tokens = 0
        self.stage_ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the block as stage ``name``."""
        start = time.perf_counter()
        yield
        self.stage_ms[name] = (time.perf_counter() - start) * 1e3

    def token(self) -> None:
        """Note that a token has arrived on the host."""
        self._last_token = time.perf_counter()
        if self._num_tokens == 0:
            self._first_token = self._last_token
        self._num_tokens += 1

    @property
    def ttft_ms(self) -> float:
        """Time to the first token."""
        return (self._first_token - self._start) * 1e3

    @property
    def tpot_ms(self) -> float | None:
        """Mean time of each token after the first, or None if there was none."""
        if self._num_tokens < 2:
            return None
        return (self._last_token - self._first_token) * 1e3 / (self._num_tokens - 1)
