from __future__ import annotations

import shutil
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from feather_edge import FakeBackend, Session
from feather_edge.bundle import Bundle
from feather_edge.errors import BackendError
from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory

    from feather_edge.graphs import GraphSpec
    from feather_edge.runtime.backends import Graph

PROMPT = "where is the red circle ?"
PICTURE = np.zeros((40, 60, 3), np.uint8)


@pytest.fixture(scope="module")
def bundle(bundles: BundleFactory) -> Bundle:
    return bundles(num_layers=4, image_size=56, recipe=ExportRecipe(stages=(1, 3))).bundle


@pytest.fixture
def broken(bundle: Bundle, tmp_path: Path) -> Bundle:
    """Return a bundle that was whole when it was opened, and then lost two segments."""
    opened = Bundle.open(shutil.copytree(bundle.path, tmp_path / "broken"))
    for spec in bundle.decoders[1:]:
        (opened.path / spec.file).write_bytes(b"not a graph")
    return opened


class MeetingBackend(FakeBackend):
    """Opens graphs only when all of a bundle's are being opened at once."""

    opens_in_parallel = True

    def __init__(self, num_graphs: int) -> None:
        super().__init__(token_ids=[300])
        self.meeting = threading.Barrier(num_graphs)

    def open(self, file: Path, spec: GraphSpec) -> Graph:
        self.meeting.wait(timeout=30)
        return super().open(file, spec)


class SlowBackend(FakeBackend):
    """Opens nothing before it may."""

    def __init__(self) -> None:
        super().__init__(token_ids=[300])
        self.may_open = threading.Event()
        self.has_begun = threading.Event()
        self.threads: list[str] = []

    def open(self, file: Path, spec: GraphSpec) -> Graph:
        self.has_begun.set()
        assert self.may_open.wait(timeout=30)
        self.threads.append(threading.current_thread().name)
        return super().open(file, spec)


def test_graphs_open_at_once_where_the_backend_can(bundle: Bundle) -> None:
    with Session.open(bundle, backend=MeetingBackend(1 + len(bundle.decoders))) as session:
        assert session.generate(PICTURE, PROMPT, max_new_tokens=1).token_ids == (300,)


def test_a_lazy_session_waits_for_its_graphs_at_the_first_request(bundle: Bundle) -> None:
    backend = SlowBackend()
    with Session.open(bundle, backend=backend, lazy=True) as session:
        backend.may_open.set()
        assert session.generate(PICTURE, PROMPT, max_new_tokens=1).token_ids == (300,)
    assert len(set(backend.threads)) == 1, (
        "a backend that does not say so opens one after the other"
    )


def test_a_lazy_session_can_be_closed_while_it_opens(bundle: Bundle) -> None:
    backend = SlowBackend()
    session = Session.open(bundle, backend=backend, lazy=True)
    assert backend.has_begun.wait(timeout=30)
    threading.Timer(0.05, backend.may_open.set).start()
    session.close()
    assert len(backend.threads) == 1, "what had begun was waited for, the rest given up"


def test_a_broken_graph_is_one_error_at_opening(broken: Bundle) -> None:
    with pytest.raises(BackendError, match=r"cannot load .*decoder_1.*\.onnx: .+") as caught:
        Session.open(broken, backend="onnxruntime")
    assert "\n" not in str(caught.value)


def test_a_lazy_session_raises_it_at_every_request(broken: Bundle) -> None:
    with Session.open(broken, backend="onnxruntime", lazy=True) as session:
        for _ in range(2):
            with pytest.raises(BackendError, match=r"cannot load .*decoder_1.*\.onnx: .+"):
                session.generate(PICTURE, PROMPT, max_new_tokens=1)
