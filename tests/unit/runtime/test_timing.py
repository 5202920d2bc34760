"""The stopwatch, on a clock that the test turns."""

from __future__ import annotations

import pytest

from feather_edge.runtime import timing
from feather_edge.runtime.timing import Stopwatch


class Clock:
    now_s = 100.0

    def advance(self, ms: float) -> None:
        self.now_s += ms / 1e3


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now_s)
    return clock


def test_stages_add_up_and_lie_within_one_another(clock: Clock) -> None:
    watch = Stopwatch()
    with watch.stage("prefill"):
        for ms in (2, 3):
            with watch.stage("prune"):
                clock.advance(ms)
            clock.advance(10)

    assert watch.stage_ms == pytest.approx({"prefill": 25, "prune": 5})


def test_a_token_s_time_is_that_since_the_one_before(clock: Clock) -> None:
    watch = Stopwatch()
    for ms in (50, 4, 8):
        clock.advance(ms)
        watch.token()

    assert watch.ttft_ms == pytest.approx(50)
    assert watch.itl_ms == pytest.approx((4, 8))
    assert watch.tpot_ms == pytest.approx(6)


def test_what_the_reader_of_a_stream_does_is_not_the_model_s_time(clock: Clock) -> None:
    watch = Stopwatch()
    for ms in (50, 4, 8):
        clock.advance(ms)
        watch.token()
        with watch.pause():
            clock.advance(1000)

    assert watch.ttft_ms == pytest.approx(50)
    assert watch.itl_ms == pytest.approx((4, 8))


def test_one_token_has_no_time_after_it(clock: Clock) -> None:
    watch = Stopwatch()
    watch.token()

    assert watch.itl_ms == ()
    assert watch.tpot_ms is None
