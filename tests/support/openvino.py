"""What OpenVINO says of the processor, whatever processor that is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    SetCapabilities = Callable[..., None]


@pytest.fixture
def capabilities(monkeypatch: pytest.MonkeyPatch) -> SetCapabilities:
    """Return a function that takes what OpenVINO then lists, such as ``BF16``."""
    core = pytest.importorskip("openvino").Core
    true = core.get_property

    def set_capabilities(*names: str) -> None:
        def get_property(self: Any, *arguments: Any) -> Any:
            asked = arguments[-1] == "OPTIMIZATION_CAPABILITIES"
            return list(names) if asked else true(self, *arguments)

        monkeypatch.setattr(core, "get_property", get_property)

    return set_capabilities
