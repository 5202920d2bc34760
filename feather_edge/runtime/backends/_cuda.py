"""The CUDA driver, as far as engines need it: memory, copies, streams, captured work, the device.

The driver's own library is called through ctypes. It is on every machine that can run an engine,
from JetPack 6 on, it needs no package, and no version of a package has to match it. Bindings that
carry a CUDA runtime do have to match: the newest are made for CUDA 13, which the driver of JetPack
6 is too old for. TensorRT works in the device's primary context, and so does this.

Addresses, streams and graphs are plain integers; ``_device_memory`` gives them owners. Sizes are
in bytes. The functions keep their names and argument types from CUDA 4 on, ``_v2`` included, those
of graphs from 11.4 on; TensorRT's ``cudaStream_t`` is the driver's ``CUstream``.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from ctypes import (
    POINTER,
    c_char_p,
    c_int,
    c_size_t,
    c_ubyte,
    c_uint,
    c_uint64,
    c_ulonglong,
    c_void_p,
)
from typing import TYPE_CHECKING, Any

from feather_edge.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

LIBRARY = "libcuda.so.1"
MIB = 1 << 20

_OUT_OF_MEMORY = 2
_COMPUTE_CAPABILITY = (75, 76)
_NON_BLOCKING = 1
_THREAD_LOCAL = 1
"""CUresult, CUdevice_attribute (major, minor), CUstream_flags, CUstreamCaptureMode of cuda.h."""

SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuMemsetD8Async": (c_uint64, c_ubyte, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
}
"""Every function that is called, with its arguments; each returns a CUresult."""


class Driver:
    """The first GPU of this machine.

    Attributes:
        device_name: as the driver calls it.
        compute_capability: as ``8.7``.
        cuda_version: newest CUDA that the driver serves, as ``12.6``.

    Raises:
        BackendError: if there is no driver or no GPU.
    """

    def __init__(self, *, library: str = LIBRARY) -> None:
        self._functions = _bind(library)
        self._thread = threading.local()
        device = c_int()
        try:
            self._check("cuInit", 0)
            self._check("cuDeviceGet", ctypes.byref(device), 0)
        except BackendError as error:
            raise BackendError(
                f"{error}; no GPU can be used here, so run on one or choose --backend onnxruntime"
            ) from error
        self._device = device.value
        self.device_name = self._name()
        major, minor = (self._attribute(number) for number in _COMPUTE_CAPABILITY)
        self.compute_capability = f"{major}.{minor}"
        version = c_int()
        self._check("cuDriverGetVersion", ctypes.byref(version))
        self.cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}"
        self._context = c_void_p()
        self._check("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)

    def close(self) -> None:
        """Let go of the device; nothing may be called after."""
        self._check("cuDevicePrimaryCtxRelease_v2", self._device)

    def memory_info(self) -> tuple[int, int]:
        """Return the bytes of device memory that are free, and that there are."""
        free, total = c_size_t(), c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def allocate(self, num_bytes: int) -> int:
        """Return the address of new device memory, aligned to 256 bytes.

        Raises:
            BackendError: if there is not enough.
        """
        address = c_uint64()
        status = self._try("cuMemAlloc_v2", ctypes.byref(address), num_bytes)
        if status == _OUT_OF_MEMORY:
            free, total = self.memory_info()
            raise BackendError(
                f"no room for {num_bytes / MIB:.1f} MiB on {self.device_name}: {free / MIB:.0f} "
                f"of {total / MIB:.0f} MiB are free; close other programs, or lower the limits "
                f"of the engines, such as build-engine --max-cache-capacity"
            )
        self._expect_success("cuMemAlloc_v2", status)
        return address.value

    def free(self, address: int) -> None:
        """Free memory; work that uses it must have ended."""
        self._call("cuMemFree_v2", address)

    def copy_to_device(self, address: int, source: NDArray[np.generic], stream: int) -> None:
        """Copy a contiguous array; it may change as soon as this returns."""
        self._call("cuMemcpyHtoDAsync_v2", address, source.ctypes.data, source.nbytes, stream)

    def copy_to_host(self, target: NDArray[np.generic], address: int, stream: int) -> None:
        """Copy into a contiguous array, which is filled once the stream is synchronised."""
        self._call("cuMemcpyDtoHAsync_v2", target.ctypes.data, address, target.nbytes, stream)

    def copy_on_device(self, target: int, source: int, num_bytes: int, stream: int) -> None:
        """Copy from device memory to device memory."""
        self._call("cuMemcpyDtoDAsync_v2", target, source, num_bytes, stream)

    def zero(self, address: int, num_bytes: int, stream: int) -> None:
        """Fill device memory with zeros."""
        self._call("cuMemsetD8Async", address, 0, num_bytes, stream)

    def create_stream(self) -> int:
        """Return a new stream, which does not wait for the default stream."""
        stream = c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
        assert stream.value is not None  # noqa: S101 - the call succeeded
        return stream.value

    def synchronise(self, stream: int) -> None:
        """Wait until all work on a stream has ended."""
        self._call("cuStreamSynchronize", stream)

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("cuStreamDestroy_v2", stream)

    def capture(self, stream: int, enqueue: Callable[[], None]) -> int:
        """Return an executable graph of what ``enqueue`` puts on a stream; nothing of it runs.

        Whatever fails, the stream works on as before.

        Raises:
            BackendError: if ``enqueue`` does, or does what cannot be captured.
        """
        graph, executable = c_void_p(), c_void_p()
        self._call("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)
        with contextlib.ExitStack() as afterwards:
            try:
                enqueue()
            finally:
                status = self._try("cuStreamEndCapture", stream, ctypes.byref(graph))
                if graph.value is not None:
                    afterwards.callback(self._call, "cuGraphDestroy", graph)
            self._expect_success("cuStreamEndCapture", status)
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, 0)
        assert executable.value is not None  # noqa: S101 - the call succeeded
        return executable.value

    def launch(self, executable: int, stream: int) -> None:
        """Run a captured graph."""
        self._call("cuGraphLaunch", executable, stream)

    def destroy_graph(self, executable: int) -> None:
        """Destroy a captured graph; its runs must have ended."""
        self._call("cuGraphExecDestroy", executable)

    def _name(self) -> str:
        name = ctypes.create_string_buffer(256)
        self._check("cuDeviceGetName", name, len(name), self._device)
        return name.value.decode(errors="replace")

    def _attribute(self, number: int) -> int:
        value = c_int()
        self._check("cuDeviceGetAttribute", ctypes.byref(value), number, self._device)
        return value.value

    def _call(self, name: str, *args: Any) -> None:
        self._expect_success(name, self._try(name, *args))

    def _try(self, name: str, *args: Any) -> int:
        """Call in the device's context, which each thread has to enter once."""
        if not getattr(self._thread, "has_entered", False):
            self._check("cuCtxSetCurrent", self._context)
            self._thread.has_entered = True
        return int(self._functions[name](*args))

    def _check(self, name: str, *args: Any) -> None:
        self._expect_success(name, int(self._functions[name](*args)))

    def _expect_success(self, name: str, status: int) -> None:
        if status == 0:
            return
        text = c_char_p()
        self._functions["cuGetErrorName"](status, ctypes.byref(text))
        reason = text.value.decode() if text.value else "an unknown error"
        raise BackendError(f"the CUDA driver failed in {name}: {reason} ({status})")


def _bind(library: str) -> dict[str, Any]:
    """Return the functions of the driver's library by name, argument types set."""
    try:
        driver = load_library(library)
        functions = {name: getattr(driver, name) for name in SIGNATURES}
    except (OSError, AttributeError) as error:
        raise BackendError(
            f"the CUDA driver cannot be used: {error}; TensorRT needs an NVIDIA GPU with its "
            f"driver, and in a container the NVIDIA runtime (docker run --runtime nvidia)"
        ) from error
    for name, arguments in SIGNATURES.items():
        functions[name].argtypes = arguments
        functions[name].restype = c_int
    return functions


def load_library(name: str) -> Any:
    """Return a shared library; a fake driver takes the place of this function."""
    return ctypes.CDLL(name)
