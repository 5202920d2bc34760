"""Buffers and the tensors in them: reused as early as possible, and never earlier."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from feather_edge.errors import BackendError
from feather_edge.runtime.backends._cuda import Driver
from feather_edge.runtime.backends._device_memory import DeviceMemory, DeviceTensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.fake_cuda import FakeGpu


@pytest.fixture
def memory(gpu: FakeGpu) -> Iterator[DeviceMemory]:
    memory = DeviceMemory(Driver())
    yield memory
    memory.close()


def test_a_buffer_is_handed_out_again_when_it_is_let_go(memory: DeviceMemory) -> None:
    first = memory.acquire(512)
    address = first.address
    second = memory.acquire(512)
    assert second.address != address
    del first
    assert memory.acquire(512).address == address
    assert memory.num_bytes == 1024


def test_reserved_buffers_are_used_first(memory: DeviceMemory, gpu: FakeGpu) -> None:
    memory.reserve(512, count=2)
    before = gpu.counts["cuMemAlloc_v2"]
    held = [memory.acquire(512), memory.acquire(512)]
    assert gpu.counts["cuMemAlloc_v2"] == before
    held.append(memory.acquire(512))
    assert gpu.counts["cuMemAlloc_v2"] == before + 1


@given(num_bytes=st.integers(0, 1 << 20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sizes_that_are_close_share(memory: DeviceMemory, num_bytes: int) -> None:
    buffer = memory.acquire_for(num_bytes)
    assert max(256, num_bytes) <= buffer.num_bytes <= max(256, 2 * num_bytes)


def test_unused_sizes_make_room(memory: DeviceMemory, gpu: FakeGpu) -> None:
    most = gpu.total_bytes * 3 // 4
    memory.acquire(most)  # and let go at once
    other = memory.acquire(most + 256)
    assert memory.num_bytes == most + 256
    with pytest.raises(BackendError, match="no room"):
        memory.acquire(most)
    del other


def test_trim_leaves_what_is_in_use(memory: DeviceMemory) -> None:
    used = memory.acquire(512)
    memory.acquire(512)
    memory.acquire(1024)
    memory.trim(1024)
    assert memory.num_bytes == 1024
    memory.trim()
    assert memory.num_bytes == 512
    assert used.num_bytes == 512


def test_an_upload_reaches_the_device_once_and_only_if_asked(
    memory: DeviceMemory,
    gpu: FakeGpu,
) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = DeviceTensor.of_array(memory, values)
    assert "cuMemcpyHtoDAsync_v2" not in gpu.counts
    assert tensor.device_address() == tensor.device_address()
    assert gpu.counts["cuMemcpyHtoDAsync_v2"] == 1
    assert tensor.values() is values


def test_an_empty_tensor_has_an_address_and_no_copy(
    memory: DeviceMemory,
    gpu: FakeGpu,
) -> None:
    tensor = DeviceTensor.of_array(memory, np.zeros((1, 2, 0, 4), np.float16))
    assert tensor.device_address()
    on_device = DeviceTensor(
        memory, shape=tensor.shape, dtype=tensor.dtype, buffer=memory.acquire_for(0)
    )
    assert on_device.values().shape == (1, 2, 0, 4)
    assert not {"cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2"} & set(gpu.counts)


def test_host_values_are_aligned(memory: DeviceMemory) -> None:
    tensor = DeviceTensor.of_array(memory, np.array([7]))
    assert tensor.host_values().ctypes.data % 256 == 0
    assert tensor.host_values().tolist() == [7]


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [1, 3, 4], [4], []])
def test_rows_are_gathered_on_the_device(
    memory: DeviceMemory,
    gpu: FakeGpu,
    rows: list[int],
) -> None:
    values = np.arange(2 * 5 * 3, dtype=np.float16).reshape(2, 5, 3)
    tensor = DeviceTensor.of_array(memory, values)
    taken = tensor.take_rows(np.array(rows, np.int64))
    assert taken.shape == (2, len(rows), 3)
    np.testing.assert_array_equal(taken.values(), values[:, rows])
    runs = {5: 1, 3: 2, 1: 1, 0: 0}[len(rows)]
    assert gpu.counts.get("cuMemcpyDtoDAsync_v2", 0) == 2 * runs


def test_a_failed_gpu_is_let_go_quietly(
    gpu: FakeGpu,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = DeviceMemory(Driver())
    with monkeypatch.context() as patch:
        patch.setattr(gpu, "cuStreamSynchronize", lambda _: 700)
        del memory  # a warning would fail the test
    gpu.reset()


def test_work_that_repeats_finds_its_places_again(memory: DeviceMemory) -> None:
    """Whatever order the buffers went in: a captured graph holds their addresses."""
    places = []
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        held = {index: memory.acquire(512) for index in range(3)}
        places.append([held[index].address for index in range(3)])
        for index in order:
            del held[index]
    assert places[0] == places[1] == places[2]


def test_zeros_are_zero_in_memory_that_was_used(memory: DeviceMemory) -> None:
    shape, dtype = (1, 2, 3, 4), np.dtype(np.float16)
    used = memory.zeros(shape, dtype)
    place = used.device_address()
    memory.driver.copy_to_device(place, np.full(shape, 7, dtype), memory.stream)
    assert (used.values() == 7).all()
    del used
    again = memory.zeros(shape, dtype)
    assert again.device_address() == place
    assert not again.values().any()
    assert memory.zeros((1, 2, 0, 4), dtype).values().shape == (1, 2, 0, 4)


def test_what_was_uploaded_is_forgotten_where_a_graph_changes_it(memory: DeviceMemory) -> None:
    tensor = DeviceTensor.of_array(memory, np.zeros(4, np.float32))
    address = tensor.address_to_change()
    memory.driver.copy_to_device(address, np.ones(4, np.float32), memory.stream)
    assert tensor.values().tolist() == [1, 1, 1, 1]


def test_a_captured_graph_outlives_the_memory_that_is_closing(
    memory: DeviceMemory, gpu: FakeGpu
) -> None:
    tensor = memory.zeros((4,), np.dtype(np.float32))
    address = tensor.device_address()
    graph = memory.capture(lambda: memory.driver.zero(address, 16, memory.stream))
    graph.launch()
    memory.close()
    assert gpu.counts.get("cuStreamDestroy_v2", 0) == 0
    del tensor
    assert gpu.counts.get("cuStreamDestroy_v2", 0) == 0
    del graph
    assert gpu.counts["cuGraphExecDestroy"] == 1
    assert gpu.counts["cuStreamDestroy_v2"] == 1
