"""Vision-language models that answer sooner on edge devices: export, prune, run.

The public names load on first use, so that ``import feather_edge`` costs nothing::

    from feather_edge import Session

    with Session.open("bundle") as session:
        for token in session.stream([image], "where is the red circle?"):
            print(token.text, end="")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feather_edge import errors
    from feather_edge.bundle import Bundle
    from feather_edge.pruning import Pruning, Region
    from feather_edge.runtime.backends.fake import FakeBackend
    from feather_edge.runtime.sampling import Sampling
    from feather_edge.runtime.session import Session

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "FakeBackend",
    "Pruning",
    "Region",
    "Sampling",
    "Session",
    "__version__",
    "errors",
]

_HOMES = {
    "Bundle": "feather_edge.bundle",
    "FakeBackend": "feather_edge.runtime.backends.fake",
    "Pruning": "feather_edge.pruning",
    "Region": "feather_edge.pruning",
    "Sampling": "feather_edge.runtime.sampling",
    "Session": "feather_edge.runtime.session",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("feather_edge.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'feather_edge' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
