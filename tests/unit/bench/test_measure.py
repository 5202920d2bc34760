"""Prunings timed in turn, and what their timings add up to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from feather_edge.bench import (
    Request,
    Timing,
    measure,
    picture_requests,
    scene_requests,
    summarise,
)
from feather_edge.bench.summary import compare_pairs
from feather_edge.errors import RequestError
from feather_edge.pruning import Pruning

NONE, HALF = Pruning(criterion="none"), Pruning(keep_ratio=(0.5,))


class FakeSession:
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Pruning]] = []

    def generate(
        self, image: np.ndarray, prompt: str, *, pruning: Pruning, max_new_tokens: int | None
    ) -> SimpleNamespace:
        assert max_new_tokens == 7
        self.asked.append((prompt, pruning))
        stages = [SimpleNamespace(before_layer=1, num_kept=40)]
        if pruning.pre_criterion != "none":
            stages.insert(0, SimpleNamespace(before_layer=0, num_kept=50))
        times = dict.fromkeys(("preprocess_ms", "vision_ms", "prune_ms", "prefill_ms"), 1.0)
        return SimpleNamespace(
            **times, segment_ms=(2.0, 3.0), ttft_ms=9.0, tpot_ms=2.0, itl_ms=(1.0, 3.0),
            num_prompt_tokens=70, num_visual_tokens=64, stages=stages,
        )  # fmt: skip


def requests(round_number: int, num_requests: int) -> list[Request]:
    image = np.zeros((2, 2, 3), np.uint8)
    return [
        Request(image=image, prompt=f"{round_number}.{number}") for number in range(num_requests)
    ]


def measured(session: FakeSession, **options: Any) -> dict[str, list[Timing]]:
    prunings = {"unpruned": NONE, "pruned": HALF}
    return measure(session, prunings, requests, max_new_tokens=7, **options)


def test_every_round_asks_all_in_the_opposite_order_of_the_one_before() -> None:
    session, done = FakeSession(), []

    timings = measured(session, warmup=1, repeat=3, on_progress=lambda *at: done.append(at))

    assert [prompt for prompt, _ in session.asked] == [
        "0.0", "0.1", "1.1", "1.0", "2.0", "2.1", "3.1", "3.0",
    ]  # fmt: skip
    assert all(pruning == (NONE, HALF)[int(prompt[-1])] for prompt, pruning in session.asked)
    assert {name: len(each) for name, each in timings.items()} == {"unpruned": 3, "pruned": 3}
    assert done == [(number, 8) for number in range(1, 9)]


def test_energy_is_that_between_call_and_last_token() -> None:
    readings = iter([10.0, 12.5, 20.0, 21.0])

    timings = measured(FakeSession(), warmup=0, repeat=1, joules=lambda: next(readings))

    assert [timings[name][0].energy_j for name in ("unpruned", "pruned")] == [2.5, 1.0]


@pytest.mark.parametrize(
    ("pre_criterion", "entering"), [("none", (64, 40)), ("uniform", (50, 40))]
)
def test_tokens_that_entered_each_segment(pre_criterion: str, entering: tuple[int, ...]) -> None:
    pruning = Pruning(pre_criterion=pre_criterion)

    (timing,) = measure(
        FakeSession(), {"one": pruning}, requests, warmup=0, repeat=1, max_new_tokens=7
    )["one"]

    assert timing.num_visual_tokens == entering
    assert timing.num_text_tokens == 6
    assert timing.num_new_tokens == 3


@pytest.mark.parametrize("options", [{"repeat": 0}, {"repeat": 1, "warmup": -1}])
def test_nothing_to_time(options: dict[str, int]) -> None:
    with pytest.raises(RequestError, match="cannot time 2 prunings in . rounds after .+ to warm"):
        measured(FakeSession(), **options)


# -- what is asked ----------------------------------------------------------------------------


def test_no_picture_is_asked_about_twice() -> None:
    source = scene_requests(seed=3)
    rounds = [source(number, 2) for number in range(6)]

    pictures = {each.image.tobytes() for both in rounds for each in both}
    assert len(pictures) == 12
    for one, other in rounds:
        assert one.prompt == other.prompt
        assert one.image.shape == other.image.shape
        assert one.prompt.startswith("where is the ")


def test_the_same_seed_asks_the_same() -> None:
    (one,), (same,), (other,) = (scene_requests(seed=seed)(5, 1) for seed in (3, 3, 4))

    np.testing.assert_array_equal(one.image, same.image)
    assert one.prompt == same.prompt
    assert not np.array_equal(one.image, other.image)


def test_a_picture_of_the_user_differs_in_one_pixel_from_request_to_request() -> None:
    picture = np.full((20, 30, 3), 7, np.uint8)
    source = picture_requests(picture, "how many cups?", seed=0)

    asked = [each for number in range(10) for each in source(number, 2)]

    assert len({each.image.tobytes() for each in asked}) == 20
    for each in asked:
        assert each.prompt == "how many cups?"
        assert (each.image != picture).any(axis=2).sum() == 1
    assert (picture == 7).all()


def test_a_picture_that_cannot_be_read() -> None:
    with pytest.raises(RequestError, match="image cannot be read"):
        picture_requests(b"no picture", "hi", seed=0)


# -- what it adds up to -----------------------------------------------------------------------


def timing(scale: float, **changes: Any) -> Timing:
    fields = {
        "preprocess_ms": 1.0,
        "vision_ms": 10.0,
        "segment_ms": (4.0 * scale, 2.0 * scale),
        "prune_ms": 0.5,
        "prefill_ms": 7.0 * scale,
        "ttft_ms": 20.0 * scale,
        "tpot_ms": 2.0 * scale,
        "itl_ms": (1.0 * scale, 3.0 * scale),
        "num_prompt_tokens": 70,
        "num_text_tokens": 6,
        "num_visual_tokens": (50, 22),
        "num_new_tokens": 3,
        "energy_j": 4.0 * scale,
    }
    return Timing(**(fields | changes))


def test_medians() -> None:
    summary = summarise([timing(3), timing(1), timing(2)])

    assert (summary.ttft_ms, summary.prefill_ms, summary.tpot_ms) == (40, 14, 4)
    assert summary.segment_ms == (8, 4)
    assert summary.energy_j == pytest.approx(8)
    assert (summary.itl_p50_ms, summary.itl_p95_ms) == (3.0, pytest.approx(8.25))
    assert summary.decode_tokens_per_s == pytest.approx(250)
    assert len(summary.timings) == 3


def test_tokens_per_second_of_what_was_given_and_of_what_was_kept() -> None:
    summary = summarise([timing(1)])

    assert summary.prefill_original_tokens_per_s == pytest.approx(70 / 7e-3)
    assert summary.prefill_tokens_per_s == pytest.approx((6 + 22) / 7e-3)


def test_answers_of_one_token_and_no_sensor() -> None:
    summary = summarise([timing(1, tpot_ms=None, itl_ms=(), energy_j=None)])

    assert summary.tpot_ms is summary.itl_p95_ms is summary.decode_tokens_per_s is None
    assert summary.energy_j is None


def test_pairs_are_compared_round_by_round() -> None:
    pair = compare_pairs([1.0, 4.0, None, 9.0], [2.0, 4.0, 5.0, 6.0])

    assert pair.ratios == (0.5, 1.0, 1.5)
    assert pair.median == 1.0
    assert (pair.p5, pair.p95) == (pytest.approx(0.55), pytest.approx(1.45))
    assert compare_pairs([None], [1.0]) is None
