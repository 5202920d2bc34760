"""Wall-clock times of one request, in milliseconds."""

from __future__ import annotations

import itertools
import statistics
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Stopwatch:
    """Measures named stages and the arrival of tokens since its creation.

    Attributes:
        stage_ms: time spent in each stage; a stage entered several times adds up.
    """

    def __init__(self) -> None:
        self.stage_ms: dict[str, float] = {}
        self._start_s = time.perf_counter()
        self._paused_s = 0.0
        self._token_s: list[float] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the block as stage ``name``; stages may lie within one another."""
        start_s = time.perf_counter()
        yield
        elapsed_ms = (time.perf_counter() - start_s) * 1e3
        self.stage_ms[name] = self.stage_ms.get(name, 0.0) + elapsed_ms

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Let the clock of the tokens stand still: the block is somebody else's time."""
        start_s = time.perf_counter()
        yield
        self._paused_s += time.perf_counter() - start_s

    def token(self) -> None:
        """Note that a token has arrived on the host."""
        self._token_s.append(time.perf_counter() - self._paused_s)

    @property
    def ttft_ms(self) -> float:
        """Time to the first token."""
        return (self._token_s[0] - self._start_s) * 1e3

    @property
    def itl_ms(self) -> tuple[float, ...]:
        """Time of each token after the first."""
        return tuple((after - before) * 1e3 for before, after in itertools.pairwise(self._token_s))

    @property
    def tpot_ms(self) -> float | None:
        """Mean time of each token after the first, or None if there was none."""
        return statistics.fmean(self.itl_ms) if self.itl_ms else None
