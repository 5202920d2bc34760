"""Which requests start with a remembered prefix, and for how long it is remembered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from feather_edge import FakeBackend, Session
from feather_edge.errors import BackendError, RequestError
from feather_edge.pruning import Layout, Pruning, VisualSpan
from feather_edge.pruning.criteria import CRITERIA
from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from support.bundles import BundleFactory

    from feather_edge.bundle import Bundle
    from feather_edge.graphs import GraphSpec
    from feather_edge.runtime.backends import Graph
    from feather_edge.runtime.result import Result

WORDS = ("red", "blue", "green", "Where")


@pytest.fixture(scope="module")
def bundle(bundles: BundleFactory) -> Bundle:
    return bundles(num_layers=4, image_size=56, recipe=ExportRecipe(stages=(1, 3))).bundle


class RowCounter(FakeBackend):
    """Notes the rows of each run of the decoder; the next ``num_failures`` of them fail."""

    def __init__(self) -> None:
        super().__init__(token_ids=[300, 301, 302])
        self.num_rows: list[int] = []
        self.num_failures = 0

    def open(self, file: Path, spec: GraphSpec) -> Graph:
        graph = super().open(file, spec)
        run, entry = graph.run, spec.inputs[0].name
        if not spec.caches:
            return graph

        def counted(inputs: Mapping[str, Any]) -> dict[str, Any]:
            self.num_rows.append(inputs[entry].shape[1])
            if self.num_failures and "logits" in {t.name for t in spec.outputs}:
                self.num_failures -= 1
                raise BackendError("the last graph fails once")
            return run(inputs)

        graph.run = counted
        return graph


def ask(session: Session, system: str, *, num_images: int = 1, **options: Any) -> Result:
    rng = np.random.default_rng(num_images)
    images = [rng.integers(0, 256, (40, 60, 3), dtype=np.uint8) for _ in range(num_images)]
    content = [*[{"type": "image"}] * num_images, {"type": "text", "text": "where is it ?"}]
    messages = [
        {"role": "system", "content": [{"type": "text", "text": system}]},
        {"role": "user", "content": content},
    ]
    return session.generate(images, messages, **{"max_new_tokens": 1, **options})


def test_nothing_is_remembered_unless_asked_for(bundle: Bundle) -> None:
    with Session.open(bundle, backend=FakeBackend(token_ids=[300])) as session:
        assert [ask(session, "red").num_cached_tokens for _ in range(2)] == [0, 0]
        assert not session.notes


def test_the_rest_of_the_prompt_runs(bundle: Bundle) -> None:
    backend = RowCounter()
    pruning = Pruning(criterion="feather", keep_ratio=(0.5, 0.25))
    with Session.open(bundle, backend=backend, cache_prefixes=1) as session:
        first = ask(session, "red", pruning=pruning)
        before = [*backend.num_rows]
        backend.num_rows.clear()
        second = ask(session, "red", pruning=pruning)
    known = second.num_cached_tokens
    assert first.num_cached_tokens == 0 < known
    assert backend.num_rows == [rows - known for rows in before]
    assert second.num_prompt_tokens == first.num_prompt_tokens
    for one, other in zip(first.stages, second.stages, strict=True):
        assert one.num_kept == other.num_kept
        assert one.scores.shape == other.scores.shape


def test_the_least_recently_used_prefix_is_dropped(bundle: Bundle) -> None:
    backend = FakeBackend(token_ids=[300])
    with Session.open(bundle, backend=backend, cache_prefixes=2) as session:
        for word, is_known in ((0, 0), (1, 0), (0, 1), (2, 0), (0, 1), (1, 0), (1, 1)):
            assert bool(ask(session, WORDS[word]).num_cached_tokens) is bool(is_known)


def test_a_prompt_without_a_picture_runs_as_a_whole(bundle: Bundle) -> None:
    with Session.open(bundle, backend=FakeBackend(token_ids=[300]), cache_prefixes=1) as session:
        assert [ask(session, "red", num_images=0).num_cached_tokens for _ in range(2)] == [0, 0]


def test_one_picture_or_two_have_the_same_prefix(bundle: Bundle) -> None:
    with Session.open(bundle, backend=FakeBackend(token_ids=[300]), cache_prefixes=1) as session:
        ask(session, "red", num_images=2)
        assert ask(session, "red").num_cached_tokens > 0


def test_a_failed_prefill_leaves_nothing_and_a_closed_stream_its_prefix(bundle: Bundle) -> None:
    backend = RowCounter()
    picture = np.zeros((40, 60, 3), np.uint8)
    with Session.open(bundle, backend=backend, cache_prefixes=1) as session:
        backend.num_failures = 1
        with pytest.raises(BackendError, match="fails once"):
            session.generate(picture, "where ?")
        stream = session.stream(picture, "where ?", max_new_tokens=3)
        next(stream)
        stream.close()
        assert session.generate(picture, "where ?").num_cached_tokens > 0


def test_threads_share_the_cache(bundle: Bundle) -> None:
    with (
        Session.open(bundle, backend=RowCounter(), cache_prefixes=4) as session,
        ThreadPoolExecutor(4) as threads,
    ):
        found = threads.map(lambda number: ask(session, WORDS[number % 4]), range(24))
        assert sum(result.num_cached_tokens == 0 for result in found) == 4


def test_a_backend_of_ones_own_says_whether_it_can(bundle: Bundle) -> None:
    backend = RowCounter()
    backend.continues_prompts = False
    with Session.open(bundle, backend=backend, cache_prefixes=1) as session:
        assert [ask(session, "red").num_cached_tokens for _ in range(2)] == [0, 0]
        assert session.notes == (
            "prefixes are not cached: backend fake runs no prompt after tokens that are cached",
        )
    assert session.notes == ()


@pytest.mark.parametrize("name", ["cache_images", "cache_prefixes"])
def test_a_cache_of_less_than_nothing_is_refused(bundle: Bundle, name: str) -> None:
    with pytest.raises(RequestError, match=f"{name} is -1; it must be 0 or more"):
        Session.open(bundle, backend=FakeBackend(token_ids=[300]), **{name: -1})


@pytest.mark.parametrize("name", CRITERIA)
def test_text_takes_part_at_all_stages_of_a_criterion_or_at_none(name: str) -> None:
    angles = np.random.default_rng(0).random((70, 4))
    layout = Layout.full(70, [VisualSpan(start=3, height=8, width=8)], angles=angles)
    pruning = Pruning(criterion=name, keep_ratio=(0.5, 0.25, 0.125))
    plans = [CRITERIA[name].plan(pruning, stage, 3, layout) for stage in range(3)]

    found = {plan.ranks_with_text for plan in plans}

    assert found == {name in {"fastv-full", "pyramiddrop", "pyramiddrop-reset", "ivc-value"}}
