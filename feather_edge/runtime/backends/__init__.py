"""Backends: what executes graphs. One thin seam (``base``), one file per implementation."""

from __future__ import annotations

from feather_edge.errors import BackendError
from feather_edge.runtime.backends.base import Backend, Graph
from feather_edge.runtime.backends.fake import FakeBackend

BACKEND_NAMES = ("auto", "onnxruntime")

__all__ = ["BACKEND_NAMES", "Backend", "FakeBackend", "Graph", "create_backend"]


def create_backend(name: str) -> Backend:
    """Return the backend called ``name``; ``auto`` is the fastest that is installed.

    Raises:
        BackendError: if the name is unknown or the backend's package is not installed.
    """
    if name not in BACKEND_NAMES:
        raise BackendError(f"backend {name!r} is unknown; choose {' or '.join(BACKEND_NAMES)}")
    from feather_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend()
