"""A soak finds what it is there to find: leaks, and answers that change."""

from __future__ import annotations

import itertools
import json
import os
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from feather_edge.bench import soak as module
from feather_edge.bench.cases import ENDINGS, random_case
from feather_edge.bench.growth import Footprint, fitted_growth
from feather_edge.bench.soak import SoakReport, soak
from feather_edge.errors import BenchmarkError, RequestError
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.bundles import BundleFactory

    from feather_edge.bundle import Bundle

DURATION_S = 1.5


@pytest.fixture(scope="module")
def bundle(bundles: BundleFactory) -> Bundle:
    return bundles(num_layers=4, image_size=56, recipe=ExportRecipe(stages=(1, 3))).bundle


@pytest.fixture(autouse=True)
def _quick_soaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pictures, and a clock that goes on at every look: as many rounds on any machine."""
    monkeypatch.setattr("feather_edge.bench.cases.MAX_SIDE_PX", 64)
    looks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(looks) * 0.1)
    monkeypatch.setattr(module, "time", clock)


# -- cases ------------------------------------------------------------------------------------


def test_a_case_is_always_the_same(bundle: Bundle) -> None:
    one, same, other = (random_case(bundle, (3, number)) for number in (5, 5, 6))

    assert one.request.keys() == same.request.keys()
    assert one.request["pruning"] == same.request["pruning"]
    for image, again in zip(one.request["images"], same.request["images"], strict=True):
        np.testing.assert_array_equal(image, again)
    assert one.request["prompt"] != other.request["prompt"]


def test_every_way_to_end_comes_up(bundle: Bundle) -> None:
    cases = [random_case(bundle, (0, number)) for number in range(100)]

    assert {case.ending for case in cases} == set(ENDINGS)
    assert {case.request["pruning"].criterion for case in cases} >= {"feather", "none", "ivc"}
    assert {len(case.request["images"]) for case in cases if case.ending == "answered"} == {
        0,
        1,
        2,
    }


def test_what_is_spoilt_is_refused(bundle: Bundle) -> None:
    cases = [random_case(bundle, (0, number)) for number in range(150)]
    spoilt = [case for case in cases if case.ending == "refused"]

    assert len(spoilt) > 6
    with Session.open(bundle, num_threads=1) as session:
        for case in spoilt:
            with pytest.raises(RequestError):
                session.generate(**case.request)


# -- soaking ----------------------------------------------------------------------------------


def test_a_sound_session(bundle: Bundle) -> None:
    seen: list[tuple[int, int]] = []

    report = soak(
        bundle, DURATION_S, seed=1, num_threads=1, on_progress=lambda *at: seen.append(at)
    )

    assert report.duration_s >= DURATION_S
    assert report.num_requests["answered"] > 3
    assert report.num_requests["cancelled"] + report.num_requests["dropped"] > 0
    assert report.num_compared > 3
    assert report.different == ()
    assert report.num_threads[1] <= report.num_threads[0]
    assert report.num_files[1] <= report.num_files[0]
    assert seen[-1] == (2, 2)
    assert seen == sorted(seen)
    assert set(json.loads(msgspec.json.encode(report))) == set(SoakReport.__struct_fields__)


def leaking(monkeypatch: pytest.MonkeyPatch, leak: Any) -> None:
    """Let a session leak at every request."""
    stream = Session.stream

    def leaky(self: Session, *arguments: Any, **options: Any) -> Any:
        leak()
        return stream(self, *arguments, **options)

    monkeypatch.setattr(Session, "stream", leaky)


def test_open_files_that_stay_are_found(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    leaked: list[int] = []
    leaking(monkeypatch, lambda: leaked.append(os.dup(0)))
    report = soak(bundle, DURATION_S, num_threads=1)
    for file in leaked:
        os.close(file)

    with pytest.raises(BenchmarkError, match=r"open files rose from \d+ to \d+ in \d s: some"):
        module.SoakReport.check(msgspec.structs.replace(report, growth_mib=0.0))


def test_threads_that_stay_are_found(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()

    def begin_thread() -> None:
        if threading.active_count() < 50:
            threading.Thread(target=end.wait).start()

    leaking(monkeypatch, begin_thread)
    monkeypatch.setattr(module, "WARMUP_SHARE", 0.0)
    report = soak(bundle, DURATION_S, num_threads=1)
    end.set()

    with pytest.raises(BenchmarkError, match=r"threads rose from \d+ to \d+ in \d s: something"):
        msgspec.structs.replace(report, growth_mib=0.0).check()


def test_memory_that_stays_is_found(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[np.ndarray] = []
    leaking(monkeypatch, lambda: held.append(np.ones(2**23, np.uint8)))

    report = soak(bundle, DURATION_S, num_threads=1)

    assert report.growth_mib > report.max_growth_mib
    with pytest.raises(BenchmarkError, match=r"host memory grew by [\d.]+ MiB in \d s, more than"):
        report.check()


def test_answers_that_change_are_found(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: Iterator[int] = itertools.count()
    monkeypatch.setattr(module, "_answer_of", lambda result: (next(numbers), ()))

    report = soak(bundle, DURATION_S, num_threads=1)

    assert len(report.different) == report.num_compared
    with pytest.raises(BenchmarkError, match=r"answers differ from a fresh session's, first that"):
        report.check()


def test_a_spoilt_request_that_is_answered_is_found(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feather_edge.bench.cases._spoilt", lambda rng: {})

    with pytest.raises(BenchmarkError, match=r"case \d+ of seed 0 is wrong, yet was answered"):
        soak(bundle, 20 * DURATION_S, num_threads=1)


# -- judging ----------------------------------------------------------------------------------


def footprint(at_s: float, **changes: Any) -> Footprint:
    found = {"rss_mib": 100.0, "device_mib": None, "num_threads": 9, "num_files": 10}
    return Footprint(at_s=at_s, **(found | changes))


def test_device_memory_that_stays_is_found() -> None:
    report = SoakReport(
        duration_s=60.0, seed=0, num_requests=dict.fromkeys(ENDINGS, 5), num_compared=5,
        different=(), growth_mib=1.0, device_growth_mib=9.0, max_growth_mib=8.0,
        footprints=(footprint(1, device_mib=50.0), footprint(60, device_mib=59.0)),
    )  # fmt: skip

    assert "on the device +9.0 MiB (at most 8.0)" in report.summary
    with pytest.raises(BenchmarkError, match="device memory grew by 9.0 MiB in 60 s, more than"):
        report.check()


def test_a_soak_without_answers_proves_nothing() -> None:
    report = SoakReport(
        duration_s=60.0, seed=0, num_requests=dict.fromkeys(ENDINGS, 0), num_compared=0,
        different=(), growth_mib=0.0, device_growth_mib=None, max_growth_mib=8.0,
        footprints=(footprint(1), footprint(60)),
    )  # fmt: skip

    with pytest.raises(BenchmarkError, match="no request was answered in 60 s"):
        report.check()


def test_growth_is_that_of_the_line_and_not_of_its_ends() -> None:
    times = list(range(101))
    noisy = [50 + (5 if t % 2 else -5) for t in times]

    assert abs(fitted_growth(times, noisy)) < 1
    assert fitted_growth(times, [50 + 0.1 * t for t in times]) == pytest.approx(10)
    assert fitted_growth([3.0], [1.0]) == 0
