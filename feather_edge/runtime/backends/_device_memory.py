"""Who owns device memory: buffers, the tensors in them, and when both may be used again.

Everything runs on one stream, so what is enqueued later sees what was enqueued before. Three rules
follow from that and keep caches sound without any waiting:

- A buffer belongs to the tensors that lie in it. When the last of them goes, the buffer may be
  handed out again at once: whoever writes to it next is enqueued after its last reader.
- A buffer that a tensor still holds is never handed out. A graph that reads a cache and writes the
  grown one therefore alternates between two buffers.
- Memory is given back to the device only after the stream has been synchronised.

Of the unused buffers of a size the one at the lowest address goes first, whatever order they came
back in: work that repeats finds its tensors in the same places, and a captured graph fits again.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import sys
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from feather_edge.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from feather_edge.runtime.backends._cuda import Driver

ALIGNMENT = 256
"""Bytes; what TensorRT asks of every address."""


class DeviceMemory:
    """The memory and the stream of one backend.

    Attributes:
        driver: of the device.
        stream: on which everything runs.
        num_bytes: allocated on the device, in use or not.
    """

    stream = 0

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.num_bytes = 0
        self._unused: dict[int, list[int]] = defaultdict(list)
        self._held: list[object] = []
        self._num_in_use = 0
        self._is_closing = False
        self.stream = driver.create_stream()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Give everything back, once the last buffer in use has gone.

        Buffers refer to their memory and so usually go first; where objects refer to each other in
        a circle, as around an exception, Python may finalise them in any order.
        """
        self._is_closing = True
        self._finish_closing()

    def _finish_closing(self) -> None:
        # At exit the driver frees everything by itself.
        if self._num_in_use or not self.stream or sys.is_finalizing():
            return
        stream, self.stream = self.stream, 0
        with contextlib.suppress(BackendError):  # a GPU that failed frees nothing any more
            self.driver.synchronise(stream)
            self._held.clear()
            self._free_unused(list(self._unused))
            self.driver.destroy_stream(stream)
            self.driver.close()

    def acquire(self, num_bytes: int) -> Buffer:
        """Return a buffer of exactly this size, an unused one if there is any."""
        unused = self._unused[num_bytes]
        address = heapq.heappop(unused) if unused else self._allocate(num_bytes)
        self._num_in_use += 1
        return Buffer(self, address, num_bytes)

    def acquire_for(self, num_bytes: int) -> Buffer:
        """Return a buffer of at least this size; sizes that are close to one another share."""
        return self.acquire(max(ALIGNMENT, 1 << (num_bytes - 1).bit_length()))

    def reserve(self, num_bytes: int, *, count: int) -> None:
        """Allocate ``count`` more buffers of this size now, so that none is missing later."""
        for _ in range(count):
            heapq.heappush(self._unused[num_bytes], self._allocate(num_bytes))

    def give_back(self, address: int, num_bytes: int) -> None:
        """Take an unused buffer back; called by the buffer itself."""
        heapq.heappush(self._unused[num_bytes], address)
        self._let_go()

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceTensor:
        """Return a tensor of zeros, in a buffer of exactly its size."""
        num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        buffer = self.acquire(num_bytes) if num_bytes else None
        if buffer is not None:
            self.driver.zero(buffer.address, num_bytes, self.stream)
        return DeviceTensor(self, shape=shape, dtype=dtype, buffer=buffer)

    def capture(self, enqueue: Callable[[], None]) -> CapturedGraph:
        """Return what ``enqueue`` puts on the stream, to be launched; errors as of the driver."""
        executable = self.driver.capture(self.stream, enqueue)
        self._num_in_use += 1
        return CapturedGraph(self, executable)

    def destroy(self, executable: int) -> None:
        """Destroy a captured graph; called by the graph itself."""
        with contextlib.suppress(BackendError):  # a GPU that failed destroys nothing any more
            self.synchronise()
            self.driver.destroy_graph(executable)
        self._let_go()

    def _let_go(self) -> None:
        self._num_in_use -= 1
        if self._is_closing:
            self._finish_closing()

    def hold(self, thing: object) -> None:
        """Keep something alive until the next synchronisation: the device may still read it."""
        self._held.append(thing)

    def synchronise(self) -> None:
        """Wait until everything that was enqueued has ended."""
        if self.stream:
            self.driver.synchronise(self.stream)
        self._held.clear()

    def trim(self, num_bytes: int | None = None) -> None:
        """Give unused buffers back to the device: all, or those of one size."""
        self.synchronise()
        self._free_unused(list(self._unused) if num_bytes is None else [num_bytes])

    def _free_unused(self, sizes: list[int]) -> None:
        for size in sizes:
            for address in self._unused.pop(size, ()):
                self.driver.free(address)
                self.num_bytes -= size

    def _allocate(self, num_bytes: int) -> int:
        try:
            address = self.driver.allocate(num_bytes)
        except BackendError:
            if not any(self._unused.values()):
                raise
            self.trim()  # sizes that nobody asks for any more
            address = self.driver.allocate(num_bytes)
        self.num_bytes += num_bytes
        return address


class Buffer:
    """Device memory with an owner: it goes back when the last reference to it goes."""

    __slots__ = ("_memory", "address", "num_bytes")

    def __init__(self, memory: DeviceMemory, address: int, num_bytes: int) -> None:
        self._memory = memory
        self.address = address
        self.num_bytes = num_bytes

    def __del__(self) -> None:
        self._memory.give_back(self.address, self.num_bytes)


class CapturedGraph:
    """Work on the stream, captured: its addresses and shapes are fixed."""

    __slots__ = ("_executable", "_memory")

    def __init__(self, memory: DeviceMemory, executable: int) -> None:
        self._memory = memory
        self._executable = executable

    def launch(self) -> None:
        """Enqueue the work."""
        self._memory.driver.launch(self._executable, self._memory.stream)

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self._memory.destroy(self._executable)


class DeviceTensor:
    """A handle: shape and type, and a buffer on the device or an array of the host, or both.

    What is uploaded stays on the host until a graph asks for it on the device, for some inputs
    (the number of rows to keep) are read on the host only.
    """

    __slots__ = ("_aligned", "_array", "_buffer", "_memory", "dtype", "shape")

    def __init__(
        self,
        memory: DeviceMemory,
        *,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        buffer: Buffer | None = None,
        array: NDArray[Any] | None = None,
    ) -> None:
        self._memory = memory
        self._buffer = buffer
        self._array = array
        self._aligned: NDArray[Any] | None = None
        self.shape = shape
        self.dtype = dtype

    @classmethod
    def of_array(cls, memory: DeviceMemory, array: NDArray[Any]) -> DeviceTensor:
        """Return a handle of a host array [...], which must not change while it is used."""
        array = np.ascontiguousarray(array)
        return cls(memory, shape=array.shape, dtype=array.dtype, array=array)

    @property
    def num_bytes(self) -> int:
        """Size of the values."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def device_address(self) -> int:
        """Return where the values are on the device; an uploaded array is copied there once."""
        if self._buffer is None:
            self._buffer = self._memory.acquire_for(self.num_bytes)
            if self._array is not None and self._array.nbytes:
                self._memory.driver.copy_to_device(
                    self._buffer.address, self._array, self._memory.stream
                )
        return self._buffer.address

    def address_to_change(self) -> int:
        """Return where a graph may change the values, which are nowhere else from now on."""
        address = self.device_address()
        self._array = self._aligned = None
        return address

    def host_values(self) -> NDArray[Any]:
        """Return the values in a row on the host, aligned as TensorRT asks."""
        if self._aligned is None:
            values = self.values()
            room = np.empty(values.nbytes + ALIGNMENT, np.uint8)
            start = -room.ctypes.data % ALIGNMENT
            self._aligned = room[start : start + values.nbytes].view(self.dtype)
            self._aligned[:] = values.ravel()
        return self._aligned

    def values(self) -> NDArray[Any]:
        """Return the values on the host; waits for the device if they are only there."""
        if self._array is not None:
            return self._array
        array: NDArray[Any] = np.empty(self.shape, self.dtype)
        if array.nbytes:
            self._memory.driver.copy_to_host(array, self.device_address(), self._memory.stream)
        self._memory.synchronise()
        return array

    def take_rows(self, rows: NDArray[np.int64]) -> DeviceTensor:
        """Return ``rows`` of this tensor [B, S, ...] as a new one [B, K, ...], on the device."""
        batch, num_rows, *rest = self.shape
        row_bytes = int(np.prod(rest, dtype=np.int64)) * self.dtype.itemsize
        source, target = (
            self.device_address(),
            self._memory.acquire_for(batch * len(rows) * row_bytes),
        )
        # Neighbours are copied together: where nothing was pruned, all rows are one copy.
        starts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        for index in range(batch):
            for start, end in itertools.pairwise(starts):
                if start == end:
                    continue
                self._memory.driver.copy_on_device(
                    target.address + (index * len(rows) + start) * row_bytes,
                    source + (index * num_rows + int(rows[start])) * row_bytes,
                    (end - start) * row_bytes,
                    self._memory.stream,
                )
        return DeviceTensor(
            self._memory, shape=(batch, len(rows), *rest), dtype=self.dtype, buffer=target
        )
