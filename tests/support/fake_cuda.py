"""A GPU made of host memory, behind the functions of the CUDA driver.

The functions are C function pointers, called through ctypes like those of the real library.
Nothing is forgiven: use after free, copies out of range, host addresses where device addresses
belong, work on an unknown stream or unordered on two, a thread without a context. Work on a stream
happens when the stream is synchronised and not before, and fresh memory holds NaN, so a result
that nobody waited for or wrote is seen to be wrong.

While a stream is captured, nothing may be allocated, freed, waited for, or copied from or to the
host. A captured graph may run as long as the memory that it touches is there, and whoever put work
into it does not object.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import threading
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from support.fake_libcuda import FakeLibrary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["FakeGpu", "Misuse"]

DEVICE_MEMORY = 0xD00D_0000_0000_0000
"""No process has an address here, so no device address is ever a host address."""

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, NO_DEVICE, INVALID_CONTEXT = 0, 1, 2, 100, 201
ILLEGAL_ADDRESS = 700
CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED = 900, 901
NAMES = {
    CAPTURE_UNSUPPORTED: b"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
    CAPTURE_INVALIDATED: b"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
    INVALID_VALUE: b"CUDA_ERROR_INVALID_VALUE",
    OUT_OF_MEMORY: b"CUDA_ERROR_OUT_OF_MEMORY",
    NO_DEVICE: b"CUDA_ERROR_NO_DEVICE",
    INVALID_CONTEXT: b"CUDA_ERROR_INVALID_CONTEXT",
    ILLEGAL_ADDRESS: b"CUDA_ERROR_ILLEGAL_ADDRESS",
}


class Misuse(Exception):  # noqa: N818 - not a failure of the code under test alone
    """The program did what a GPU would not have survived."""


@dataclass(eq=False)
class Allocation:
    """A piece of device memory."""

    address: int
    values: np.ndarray
    pending: dict[int, int] = field(default_factory=dict)
    """Pieces of work that touch it, by stream."""


@dataclass(eq=False)
class Work:
    """Something that happens on a stream; ``begin`` is called when it is put there to happen."""

    touched: list[Allocation]
    run: Callable[[], None]
    begin: Callable[[], None]


class FakeGpu:
    """A device; ``library`` stands in for the driver's library.

    Attributes:
        misuses: what went wrong, in words; a test wants none.
        counts: calls of each function.
    """

    def __init__(
        self,
        *,
        device_name: str = "Orin",
        compute_capability: tuple[int, int] = (8, 7),
        total_bytes: int = 1 << 30,
    ) -> None:
        self.device_name = device_name
        self.compute_capability = compute_capability
        self.total_bytes = total_bytes
        self.num_devices = 1
        self.misuses: list[str] = []
        self.counts: dict[str, int] = {}
        self.num_contexts = 0
        self.allocations: dict[int, Allocation] = {}
        self._freed: list[tuple[int, int]] = []
        self._next = DEVICE_MEMORY
        self._threads: set[int] = set()
        self._streams: dict[int, list[Work]] = {}
        self._captures: dict[int, list[Work]] = {}
        self._graphs: dict[int, list[Work]] = {}
        self._is_invalid = False
        self._handles = itertools.count(0x5000, 16)
        self.library = FakeLibrary(self)

    @property
    def used_bytes(self) -> int:
        """Bytes allocated."""
        return sum(len(each.values) for each in self.allocations.values())

    def reset(self) -> None:
        """Begin anew, as a process after one that failed."""
        self.misuses.clear()
        self.allocations.clear()
        self._streams.clear()
        self._graphs.clear()
        self.num_contexts = 0

    def check(self) -> None:
        """Fail if anything was misused, or is left."""
        assert not self.misuses, self.misuses
        assert self.allocations == {}, f"{len(self.allocations)} allocations leaked"
        assert self._streams == {}, "a stream leaked"
        assert self._graphs == {}, "a captured graph leaked"
        assert self.num_contexts == 0, "the primary context was not released"

    # What devices do with memory; fake TensorRT calls these too.

    def find(self, address: int, num_bytes: int) -> tuple[Allocation, slice]:
        """Return the allocation that holds a range, and where in it."""
        for base, each in self.allocations.items():
            if base <= address < base + len(each.values):
                start = address - base
                if start + num_bytes > len(each.values):
                    raise Misuse(
                        f"{num_bytes} bytes at {start} of an allocation of {len(each.values)}"
                    )
                return each, slice(start, start + num_bytes)
        for base, size in self._freed:
            if base <= address < base + size:
                raise Misuse("use after free")
        raise Misuse(f"{address:#x} is no device address")

    def enqueue(
        self,
        stream: int,
        touched: Sequence[Allocation],
        work: Callable[[], None],
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        """Let ``work`` happen when the stream is synchronised, or capture it."""
        if stream not in self._streams:
            raise Misuse(f"stream {stream:#x} does not exist")
        each = Work(list(touched), work, begin)
        if stream in self._captures:
            self._captures[stream].append(each)
        else:
            self._put(stream, each)

    def is_capturing(self, stream: int) -> bool:
        """Return whether what is enqueued is captured and does not happen."""
        return stream in self._captures

    def _put(self, stream: int, work: Work) -> None:
        for each in work.touched:
            if each not in self.allocations.values():
                raise Misuse("a captured graph uses memory that was freed")
            if set(each.pending) - {stream}:
                raise Misuse("memory is used on two streams without synchronisation")
        work.begin()
        for each in work.touched:
            each.pending[stream] = each.pending.get(stream, 0) + 1
        self._streams[stream].append(work)

    def host_address(self, address: int) -> int:
        """Return an address that must be on the host."""
        if not address or address >= DEVICE_MEMORY:
            raise Misuse(f"{address:#x} is no host address")
        return address

    def poison(self, address: int, num_bytes: int) -> None:
        """Overwrite memory that nobody may rely on."""
        each, place = self.find(address, num_bytes)
        each.values[place] = 0xFF

    # The driver's functions.

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return SUCCESS if flags == 0 else INVALID_VALUE

    def cuDriverGetVersion(self, out: int) -> int:  # noqa: N802
        return _store(out, c_int, 12060)

    def cuDeviceGet(self, out: int, ordinal: int) -> int:  # noqa: N802
        return _store(out, c_int, ordinal) if ordinal < self.num_devices else NO_DEVICE

    def cuDeviceGetName(self, out: int, length: int, _device: int) -> int:  # noqa: N802
        text = self.device_name.encode()[: length - 1] + b"\0"
        ctypes.memmove(out, text, len(text))
        return SUCCESS

    def cuDeviceGetAttribute(self, out: int, attribute: int, _device: int) -> int:  # noqa: N802
        return _store(
            out, c_int, dict(zip((75, 76), self.compute_capability, strict=True))[attribute]
        )

    def cuDevicePrimaryCtxRetain(self, out: int, _device: int) -> int:  # noqa: N802
        self.num_contexts += 1
        return _store(out, c_void_p, 0xC0)

    def cuDevicePrimaryCtxRelease_v2(self, _device: int) -> int:  # noqa: N802
        self.num_contexts -= 1
        return SUCCESS

    def cuCtxSetCurrent(self, context: int) -> int:  # noqa: N802
        self._threads.add(threading.get_ident())
        return SUCCESS if context == 0xC0 else INVALID_CONTEXT

    def cuMemGetInfo_v2(self, free: int, total: int) -> int:  # noqa: N802
        self._need_context()
        _store(free, c_size_t, self.total_bytes - self.used_bytes)
        return _store(total, c_size_t, self.total_bytes)

    def cuMemAlloc_v2(self, out: int, num_bytes: int) -> int:  # noqa: N802
        self._need_context()
        self._forbid_in_capture("memory was allocated")
        if num_bytes == 0:
            return INVALID_VALUE
        if self.used_bytes + num_bytes > self.total_bytes:
            return OUT_OF_MEMORY
        address, self._next = self._next, self._next + -(-num_bytes // 256) * 256 + 256
        self.allocations[address] = Allocation(address, np.full(num_bytes, 0xFF, np.uint8))
        return _store(out, c_uint64, address)

    def cuMemFree_v2(self, address: int) -> int:  # noqa: N802
        self._need_context()
        self._forbid_in_capture("memory was freed")
        each, place = self.find(address, 1)
        if place.start != 0:
            raise Misuse("freed in the middle of an allocation")
        if each.pending:
            raise Misuse("freed while work that uses it has not ended")
        del self.allocations[address]
        self._freed.append((address, len(each.values)))
        return SUCCESS

    def cuMemcpyHtoDAsync_v2(  # noqa: N802
        self, target: int, source: int, num_bytes: int, stream: int
    ) -> int:
        self._need_context()
        self._forbid_in_capture("host memory was read")
        each, place = self.find(target, num_bytes)
        staged = ctypes.string_at(self.host_address(source), num_bytes)

        def work() -> None:
            each.values[place] = np.frombuffer(staged, np.uint8)

        self.enqueue(stream, [each], work)
        return SUCCESS

    def cuMemcpyDtoHAsync_v2(  # noqa: N802
        self, target: int, source: int, num_bytes: int, stream: int
    ) -> int:
        self._need_context()
        self._forbid_in_capture("host memory was written")
        each, place = self.find(source, num_bytes)
        host = self.host_address(target)

        def work() -> None:
            ctypes.memmove(host, each.values[place].tobytes(), num_bytes)

        self.enqueue(stream, [each], work)
        return SUCCESS

    def cuMemcpyDtoDAsync_v2(  # noqa: N802
        self, target: int, source: int, num_bytes: int, stream: int
    ) -> int:
        self._need_context()
        (to, to_place), (of, of_place) = (self.find(a, num_bytes) for a in (target, source))

        def work() -> None:
            to.values[to_place] = of.values[of_place]

        self.enqueue(stream, [to, of], work)
        return SUCCESS

    def cuMemsetD8Async(  # noqa: N802
        self, target: int, value: int, num_bytes: int, stream: int
    ) -> int:
        self._need_context()
        each, place = self.find(target, num_bytes)

        def work() -> None:
            each.values[place] = value

        self.enqueue(stream, [each], work)
        return SUCCESS

    def cuStreamBeginCapture_v2(self, stream: int, mode: int) -> int:  # noqa: N802
        self._need_context()
        if mode != 1:
            raise Misuse("a capture that other threads' work can break")
        if stream not in self._streams or stream in self._captures:
            raise Misuse(f"stream {stream:#x} cannot be captured")
        self._captures[stream] = []
        return SUCCESS

    def cuStreamEndCapture(self, stream: int, out: int) -> int:  # noqa: N802
        self._need_context()
        if stream not in self._captures:
            raise Misuse(f"stream {stream:#x} is not captured")
        works = self._captures.pop(stream)
        if self._is_invalid:
            self._is_invalid = False
            _store(out, c_void_p, None)
            return CAPTURE_INVALIDATED
        handle = next(self._handles)
        self._graphs[handle] = works
        return _store(out, c_void_p, handle)

    def cuGraphInstantiateWithFlags(self, out: int, graph: int, flags: int) -> int:  # noqa: N802
        self._need_context()
        assert flags == 0
        handle = next(self._handles)
        self._graphs[handle] = list(self._graphs[graph])
        return _store(out, c_void_p, handle)

    def cuGraphLaunch(self, executable: int, stream: int) -> int:  # noqa: N802
        self._need_context()
        for work in self._graphs[executable]:
            self._put(stream, work)
        return SUCCESS

    def cuGraphDestroy(self, graph: int) -> int:  # noqa: N802
        self._need_context()
        del self._graphs[graph]
        return SUCCESS

    def cuGraphExecDestroy(self, executable: int) -> int:  # noqa: N802
        self._need_context()
        works = self._graphs.pop(executable)
        if any(work in pending for pending in self._streams.values() for work in works):
            raise Misuse("a captured graph was destroyed while it runs")
        return SUCCESS

    def cuStreamCreate(self, out: int, flags: int) -> int:  # noqa: N802
        self._need_context()
        if flags != 1:
            raise Misuse("the stream waits for the default stream")
        handle = next(self._handles)
        self._streams[handle] = []
        return _store(out, c_void_p, handle)

    def cuStreamSynchronize(self, stream: int) -> int:  # noqa: N802
        self._need_context()
        self._forbid_in_capture("somebody waited")
        if stream not in self._streams:
            raise Misuse(f"stream {stream!r} does not exist")
        pending, self._streams[stream] = self._streams[stream], []
        with contextlib.ExitStack() as stack:
            for work in pending:
                stack.callback(_ended, work.touched, stream)
            for work in pending:
                work.run()
        return SUCCESS

    def cuStreamDestroy_v2(self, stream: int) -> int:  # noqa: N802
        self._need_context()
        if self._streams.pop(stream):
            raise Misuse("a stream was destroyed with work on it")
        return SUCCESS

    def cuGetErrorName(self, status: int, out: int) -> int:  # noqa: N802
        if status not in NAMES:
            return INVALID_VALUE
        return _store(out, c_char_p, NAMES[status])

    def _forbid_in_capture(self, what: str) -> None:
        if self._captures:
            self._is_invalid = True
            raise Misuse(f"{what} during a capture")

    def invalidate(self) -> None:
        """Let what is captured now come to nothing, as work that cannot be captured does."""
        self._is_invalid = True

    def _need_context(self) -> None:
        if threading.get_ident() not in self._threads:
            raise Misuse("this thread has not entered the context")


def _ended(touched: list[Allocation], stream: int) -> None:
    for each in touched:
        each.pending[stream] -= 1
        if not each.pending[stream]:
            del each.pending[stream]


def _store(address: int, kind: Any, value: Any) -> int:
    ctypes.cast(address, POINTER(kind))[0] = value
    return SUCCESS


@contextlib.contextmanager
def expect_misuse(gpu: FakeGpu, text: str) -> Iterator[None]:
    """Expect exactly one misuse, whose words contain ``text``."""
    yield
    (found,) = gpu.misuses
    assert text in found
    gpu.misuses.clear()
