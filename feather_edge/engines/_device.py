"""The GPU at hand, asked of the driver itself: no CUDA package is needed to name a device."""

from __future__ import annotations

import ctypes

from feather_edge.engines.jobs import Device

__all__ = ["current_device"]

_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


def current_device(library: str = "libcuda.so.1") -> Device | None:
    """Return the first GPU, or None where there is no driver or no GPU."""
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return None
    device = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), device)
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        numbers.append(value.value)
    return Device(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{numbers[0]}.{numbers[1]}",
        cuda_version=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )
