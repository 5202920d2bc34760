"""The functions of the CUDA driver as C function pointers, over a ``FakeGpu``."""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.fake_cuda import FakeGpu

__all__ = ["PROTOTYPES", "FakeLibrary"]

ILLEGAL_ADDRESS = 700

PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (c_void_p,),
    "cuDeviceGet": (c_void_p, c_int),
    "cuDeviceGetName": (c_void_p, c_int, c_int),
    "cuDeviceGetAttribute": (c_void_p, c_int, c_int),
    "cuDevicePrimaryCtxRetain": (c_void_p, c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemGetInfo_v2": (c_void_p, c_void_p),
    "cuMemAlloc_v2": (c_void_p, c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuMemsetD8Async": (c_uint64, c_ubyte, c_size_t, c_void_p),
    "cuStreamCreate": (c_void_p, c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, c_void_p),
    "cuGraphInstantiateWithFlags": (c_void_p, c_void_p, c_uint64),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
    "cuGetErrorName": (c_int, c_void_p),
}
"""As declared in cuda.h, written down a second time on purpose."""


class FakeLibrary:
    """The functions as C function pointers; a misuse becomes a record and an error status."""

    def __init__(self, gpu: FakeGpu) -> None:
        for name, arguments in PROTOTYPES.items():
            prototype = ctypes.CFUNCTYPE(c_int, *arguments)
            setattr(self, name, prototype(self._guarded(gpu, name)))

    @staticmethod
    def _guarded(gpu: FakeGpu, name: str) -> Callable[..., int]:
        def call(*args: Any) -> int:
            gpu.counts[name] = gpu.counts.get(name, 0) + 1
            try:
                return int(getattr(gpu, name)(*args))
            except Exception as error:  # C functions do not raise
                gpu.misuses.append(f"{name}: {error or type(error).__name__}")
                return ILLEGAL_ADDRESS

        return call
