"""Fixtures that the whole test run shares: exports happen once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from support.bundles import BundleFactory

# Fixtures `gpu`, `trt` and `capabilities`.
pytest_plugins = ("support.devices", "support.openvino")

# The same examples on every run, and no clock: CI machines share their cores.
hypothesis.settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> BundleFactory:
    """Tiny checkpoints and their bundles, made on demand."""
    from support.bundles import BundleFactory

    return BundleFactory(tmp_path_factory.mktemp("bundles"))
