from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

from feather_edge import FakeBackend, Session
from feather_edge.errors import BackendError
from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from support.bundles import BundleFactory

    from feather_edge.bundle import Bundle
    from feather_edge.graphs import GraphSpec
    from feather_edge.runtime.backends import Graph

PROMPT = "where is the red circle ?"


@pytest.fixture(scope="module")
def bundle(bundles: BundleFactory) -> Bundle:
    return bundles(num_layers=4, image_size=56, recipe=ExportRecipe(stages=(1, 3))).bundle


class CountingBackend(FakeBackend):
    """Counts the runs of the vision graph; the next ``num_failures`` of them fail."""

    opens_in_parallel = True

    def __init__(self) -> None:
        super().__init__(token_ids=[300, 301, 302])
        self.num_vision_runs = 0
        self.num_failures = 0

    def open(self, file: Path, spec: GraphSpec) -> Graph:
        graph = super().open(file, spec)
        if spec.name != "vision_encoder":
            return graph
        run = graph.run

        def counted(inputs: Mapping[str, Any]) -> dict[str, Any]:
            self.num_vision_runs += 1
            if self.num_failures:
                self.num_failures -= 1
                raise BackendError("the vision graph fails once")
            return run(inputs)

        graph.run = counted
        return graph


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def ask(session: Session, seed: int) -> None:
    session.generate(picture(seed), PROMPT, max_new_tokens=1)


def test_without_a_cache_every_request_runs_the_encoder(bundle: Bundle) -> None:
    backend = CountingBackend()
    with Session.open(bundle, backend=backend) as session:
        ask(session, 0)
        ask(session, 0)
    assert backend.num_vision_runs == 2


def test_the_least_recently_used_picture_is_dropped(bundle: Bundle) -> None:
    backend = CountingBackend()
    with Session.open(bundle, backend=backend, cache_images=2) as session:
        for seed, num_runs in ((0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4)):
            ask(session, seed)
            assert backend.num_vision_runs == num_runs, seed


def test_one_pixel_makes_another_picture(bundle: Bundle) -> None:
    backend = CountingBackend()
    changed = picture(0)
    changed[7, 9, 1] ^= 255
    with Session.open(bundle, backend=backend, cache_images=4) as session:
        ask(session, 0)
        session.generate(changed, PROMPT, max_new_tokens=1)
    assert backend.num_vision_runs == 2


def test_an_answer_from_the_cache_is_the_same(bundle: Bundle) -> None:
    with Session.open(bundle, cache_images=1) as session:
        first, again = (session.generate(picture(3), PROMPT, max_new_tokens=6) for _ in range(2))
    assert again.token_ids == first.token_ids
    for one, other in zip(first.stages, again.stages, strict=True):
        np.testing.assert_array_equal(one.kept_indices, other.kept_indices)


def test_a_failed_run_leaves_nothing_and_a_closed_stream_its_picture(bundle: Bundle) -> None:
    backend = CountingBackend()
    with Session.open(bundle, backend=backend, cache_images=1) as session:
        backend.num_failures = 1
        with pytest.raises(BackendError, match="fails once"):
            ask(session, 0)
        stream = session.stream(picture(0), PROMPT)
        next(stream)
        stream.close()
        ask(session, 0)
    assert backend.num_vision_runs == 2


def test_threads_share_the_cache(bundle: Bundle) -> None:
    backend = CountingBackend()
    with (
        Session.open(bundle, backend=backend, cache_images=3) as session,
        ThreadPoolExecutor(4) as threads,
    ):
        list(threads.map(lambda number: ask(session, number % 3), range(24)))
    assert backend.num_vision_runs == 3
