"""A fake GPU with a fake TensorRT as the machine's own; import the fixtures by name."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support.fake_cuda import FakeGpu
from support.fake_tensorrt import fake_tensorrt

from feather_edge.runtime.backends import _cuda

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["gpu", "trt"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """A fake GPU as the machine's own; at the end nothing may be misused or left on it."""
    gpu = FakeGpu()
    monkeypatch.setattr(_cuda, "load_library", lambda _: gpu.library)
    yield gpu
    gc.collect()
    gpu.check()


@pytest.fixture
def trt(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A fake module `tensorrt` for that GPU, as if it were installed."""
    module = fake_tensorrt(gpu)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module
