"""The GPU at hand, asked of the driver itself: no CUDA package is needed to name a device."""

from __future__ import annotations

from feather_edge.engines.jobs import Device
from feather_edge.errors import BackendError
from feather_edge.runtime.backends._cuda import LIBRARY, Driver

__all__ = ["current_device"]


def current_device(library: str = LIBRARY) -> Device | None:
    """Return the first GPU, or None where there is no driver or no GPU."""
    try:
        driver = Driver(library=library)
    except BackendError:
        return None
    try:
        return Device(
            name=driver.device_name,
            compute_capability=driver.compute_capability,
            cuda_version=driver.cuda_version,
        )
    finally:
        driver.close()
