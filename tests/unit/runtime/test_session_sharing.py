"""One session, several threads and streams: turns, cancellation, closing."""

from __future__ import annotations

import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL.PngImagePlugin import PngImageFile

from feather_edge import FakeBackend, Session
from feather_edge.errors import RequestError
from feather_edge.pruning import Pruning
from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from support.bundles import BundleFactory

    from feather_edge.bundle import Bundle
    from feather_edge.graphs import GraphSpec
    from feather_edge.runtime.backends import Graph

PROMPT = "where is the red circle ?"


@pytest.fixture(scope="module")
def bundle(bundles: BundleFactory) -> Bundle:
    return bundles(num_layers=4, image_size=56, recipe=ExportRecipe(stages=(1, 3))).bundle


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)


class JealousBackend(FakeBackend):
    """Fails when two graphs run at once, and can make a run wait."""

    def __init__(self) -> None:
        super().__init__(token_ids=[300])
        self.is_busy = threading.Lock()
        self.num_runs = 0
        self.may_run = threading.Event()
        self.may_run.set()

    def open(self, file: Path, spec: GraphSpec) -> Graph:
        graph = super().open(file, spec)
        run = graph.run

        def run_alone(inputs: Mapping[str, Any]) -> dict[str, Any]:
            assert self.is_busy.acquire(blocking=False), "two graphs ran at once"
            try:
                self.num_runs += 1
                assert self.may_run.wait(timeout=30)
                time.sleep(1e-4)  # lets another thread try
                return run(inputs)
            finally:
                self.is_busy.release()

        graph.run = run_alone
        return graph


def test_threads_take_turns_and_get_their_own_results(bundle: Bundle) -> None:
    limits = [1 + number % 5 for number in range(24)]
    with (
        Session.open(bundle, backend=JealousBackend()) as session,
        ThreadPoolExecutor(6) as threads,
    ):
        results = list(
            threads.map(
                lambda limit: session.generate(picture(limit), PROMPT, max_new_tokens=limit),
                limits,
            )
        )

    assert [len(result.token_ids) for result in results] == limits


def test_answers_in_threads_are_those_of_one_after_the_other(bundle: Bundle) -> None:
    prunings = [Pruning(keep_ratio=(0.5, 0.25)), Pruning(criterion="none"), Pruning(stride=0)]
    asked = [
        {"images": picture(seed), "prompt": PROMPT, "pruning": pruning, "max_new_tokens": 5}
        for seed, pruning in enumerate(prunings * 4)
    ]
    with Session.open(bundle, backend="onnxruntime") as session, ThreadPoolExecutor(4) as threads:
        expected = [session.generate(**each) for each in asked]
        found = list(threads.map(lambda each: session.generate(**each), asked))

    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        for stage, reference in zip(one.stages, other.stages, strict=True):
            np.testing.assert_array_equal(stage.kept_indices, reference.kept_indices)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_streams_read_in_turn_do_not_share_caches(bundle: Bundle, backend: str) -> None:
    pytest.importorskip(backend)
    with Session.open(bundle, backend=backend, num_threads=1) as session:
        expected = [
            session.generate(picture(seed), PROMPT, max_new_tokens=6).token_ids
            for seed in range(3)
        ]
        streams = [session.stream(picture(seed), PROMPT, max_new_tokens=6) for seed in range(3)]
        found = list(zip(*streams, strict=True))

    assert [tuple(t.token_id for t in tokens) for tokens in zip(*found, strict=True)] == expected


def test_a_stream_that_nobody_reads_on_blocks_nobody(bundle: Bundle) -> None:
    with Session.open(bundle, backend=JealousBackend()) as session:
        waiting = session.stream(picture(0), PROMPT)
        next(waiting)
        with ThreadPoolExecutor(1) as thread:
            other = thread.submit(session.generate, picture(1), PROMPT, max_new_tokens=2)
            assert len(other.result(timeout=30).token_ids) == 2

        assert len(list(waiting)) == 127


def test_a_cancelled_stream_leaves_nothing_behind(bundle: Bundle) -> None:
    backend = JealousBackend()
    with Session.open(bundle, backend=backend) as session:
        finished = session.generate(picture(0), PROMPT, max_new_tokens=3)
        cancelled = session.stream(picture(1), PROMPT)
        next(cancelled)
        num_runs = backend.num_runs
        cancelled.close()

        assert backend.num_runs == num_runs
        assert session.last_result is finished
        assert session.generate(picture(0), PROMPT, max_new_tokens=3).token_ids == (300,) * 3


def test_a_request_that_fails_midway_gives_up_its_turn(bundle: Bundle) -> None:
    with Session.open(bundle, backend=JealousBackend()) as session:
        with pytest.raises(RequestError, match="criterion 'best' is unknown"):
            session.generate(picture(0), PROMPT, pruning=Pruning(criterion="best"))

        assert len(session.generate(picture(0), PROMPT, max_new_tokens=1).token_ids) == 1


def test_closing_ends_a_stream_with_an_error(bundle: Bundle) -> None:
    session = Session.open(bundle, backend=JealousBackend())
    stream = session.stream(picture(0), PROMPT)
    next(stream)
    session.close()

    with pytest.raises(RequestError, match="the session is closed; open another with"):
        next(stream)


def test_closing_waits_for_the_step_of_another_thread(bundle: Bundle) -> None:
    backend = JealousBackend()
    session = Session.open(bundle, backend=backend)
    backend.may_run.clear()
    with ThreadPoolExecutor(2) as threads:
        answer = threads.submit(session.generate, picture(0), PROMPT)
        while backend.num_runs == 0:
            time.sleep(1e-3)
        closing = threads.submit(session.close)
        assert not closing.done()
        backend.may_run.set()
        closing.result(timeout=30)
        with pytest.raises(RequestError, match="the session is closed"):
            answer.result(timeout=30)


def test_a_session_tells_how_long_it_took_to_open(bundle: Bundle) -> None:
    with Session.open(bundle, backend="onnxruntime", num_threads=1) as session:
        result = session.generate(picture(0), PROMPT, max_new_tokens=1)

        assert result.load_ms == session.load_ms > 0
        assert result.peak_rss_mib > 10


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and has one row of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * (1 + 3 * width))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (8192, 8193, "image has 8192 x 8193 pixels; at most 67108864 are allowed: scale it down"),
        (60000, 60000, "image has .* at most 67108864 are allowed: scale it down or crop it"),
    ],
)
def test_a_decompression_bomb_is_refused_before_it_unpacks(
    bundle: Bundle, width: int, height: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = []
    monkeypatch.setattr(PngImageFile, "load", lambda image: unpacked.append(image.size))
    with Session.open(bundle, backend=JealousBackend()) as session:
        with pytest.raises(RequestError, match=message) as caught:
            session.generate(png_header(width, height), PROMPT)
        session.generate(picture(0), PROMPT, max_new_tokens=1)

    assert "\n" not in str(caught.value)
    assert unpacked == []


def test_a_picture_too_long_for_its_width(bundle: Bundle) -> None:
    strip = np.zeros((2**21, 1, 3), np.uint8)
    with (
        Session.open(bundle, backend=JealousBackend()) as session,
        pytest.raises(RequestError, match="1 x 2097152 pixels, resized for the model, has"),
    ):
        session.generate(strip, PROMPT)
