"""The driver's seam, through C function pointers, against a GPU that forgives nothing."""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.fake_cuda import expect_misuse
from support.fake_libcuda import PROTOTYPES

from feather_edge.errors import BackendError
from feather_edge.runtime.backends import _cuda
from feather_edge.runtime.backends._cuda import Driver

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.fake_cuda import FakeGpu


@pytest.fixture
def driver(gpu: FakeGpu) -> Iterator[Driver]:
    driver = Driver()
    yield driver
    driver.close()


def test_the_device_introduces_itself(driver: Driver) -> None:
    assert driver.device_name == "Orin"
    assert driver.compute_capability == "8.7"
    assert driver.cuda_version == "12.6"


def test_memory_is_counted(driver: Driver, gpu: FakeGpu) -> None:
    address = driver.allocate(1000)
    assert driver.memory_info() == (gpu.total_bytes - 1000, gpu.total_bytes)
    driver.free(address)


def test_copies_there_across_and_back(driver: Driver) -> None:
    stream, source = driver.create_stream(), np.arange(64, dtype=np.float32)
    first, second = driver.allocate(source.nbytes), driver.allocate(source.nbytes)
    driver.copy_to_device(first, source, stream)
    driver.copy_on_device(second, first, source.nbytes, stream)
    target = np.zeros_like(source)
    driver.copy_to_host(target, second, stream)
    assert not target.any(), "nothing has happened before the stream is synchronised"
    driver.synchronise(stream)
    np.testing.assert_array_equal(target, source)
    driver.free(first)
    driver.free(second)
    driver.destroy_stream(stream)


def test_another_thread_enters_the_context_by_itself(driver: Driver) -> None:
    addresses: list[int] = []
    thread = threading.Thread(target=lambda: addresses.append(driver.allocate(256)))
    thread.start()
    thread.join()
    driver.free(addresses[0])


def test_no_room_names_sizes_and_a_way_out(driver: Driver, gpu: FakeGpu) -> None:
    with pytest.raises(BackendError) as error:
        driver.allocate(gpu.total_bytes + 1)
    assert str(error.value) == (
        "no room for 1024.0 MiB on Orin: 1024 of 1024 MiB are free; close other programs, or "
        "lower the limits of the engines, such as build-engine --max-cache-capacity"
    )


def test_a_failure_names_the_function_and_the_error(driver: Driver) -> None:
    with pytest.raises(
        BackendError, match=r"failed in cuMemAlloc_v2: CUDA_ERROR_INVALID_VALUE \(1"
    ):
        driver.allocate(0)


def test_an_error_without_a_name(
    driver: Driver,
    gpu: FakeGpu,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu, "cuMemAlloc_v2", lambda *_: 999)
    with pytest.raises(BackendError, match=r"an unknown error \(999\)"):
        driver.allocate(1)


def test_a_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        BackendError, match=r"the CUDA driver cannot be used: libno\.so\.1.*runtime"
    ):
        Driver(library="libno.so.1")
    monkeypatch.setattr(_cuda, "load_library", lambda _: object())
    with pytest.raises(BackendError, match="has no attribute 'cuInit'"):
        Driver()


def test_a_driver_without_a_gpu(gpu: FakeGpu) -> None:
    gpu.num_devices = 0
    with pytest.raises(BackendError, match="CUDA_ERROR_NO_DEVICE.*--backend onnxruntime"):
        Driver()


def test_signatures_are_those_of_the_header() -> None:
    """Widths argument by argument; the right column was written from cuda.h on its own."""
    assert set(_cuda.SIGNATURES) == set(PROTOTYPES)
    for name, arguments in _cuda.SIGNATURES.items():
        assert [ctypes.sizeof(a) for a in arguments] == [
            ctypes.sizeof(a) for a in PROTOTYPES[name]
        ], name


# The fake itself: what would have crashed is noticed.


def test_use_after_free_is_noticed(driver: Driver, gpu: FakeGpu) -> None:
    stream, address = driver.create_stream(), driver.allocate(256)
    driver.free(address)
    with expect_misuse(gpu, "use after free"), pytest.raises(BackendError):
        driver.copy_to_host(np.zeros(1), address, stream)
    driver.destroy_stream(stream)


def test_a_copy_out_of_range_is_noticed(driver: Driver, gpu: FakeGpu) -> None:
    stream, address = driver.create_stream(), driver.allocate(8)
    with expect_misuse(gpu, "16 bytes at 0"), pytest.raises(BackendError):
        driver.copy_to_device(address, np.zeros(2), stream)
    driver.destroy_stream(stream)
    driver.free(address)


def test_a_host_address_for_a_device_address_is_noticed(
    driver: Driver,
    gpu: FakeGpu,
) -> None:
    stream, host = driver.create_stream(), np.zeros(2)
    with expect_misuse(gpu, "is no device address"), pytest.raises(BackendError):
        driver.copy_to_device(host.ctypes.data, host, stream)
    driver.destroy_stream(stream)


def test_a_device_address_for_a_host_address_is_noticed(
    driver: Driver,
    gpu: FakeGpu,
) -> None:
    stream, address = driver.create_stream(), driver.allocate(8)
    with expect_misuse(gpu, "is no host address"), pytest.raises(BackendError):
        driver._call("cuMemcpyHtoDAsync_v2", address, address, 8, stream)
    driver.destroy_stream(stream)
    driver.free(address)


def test_freeing_under_work_is_noticed(driver: Driver, gpu: FakeGpu) -> None:
    stream, address = driver.create_stream(), driver.allocate(8)
    driver.copy_to_device(address, np.zeros(1), stream)
    with expect_misuse(gpu, "work that uses it has not ended"), pytest.raises(BackendError):
        driver.free(address)
    driver.synchronise(stream)
    driver.free(address)
    driver.destroy_stream(stream)


def test_two_streams_without_order_are_noticed(
    driver: Driver,
    gpu: FakeGpu,
) -> None:
    first, second, address = driver.create_stream(), driver.create_stream(), driver.allocate(8)
    driver.copy_to_device(address, np.zeros(1), first)
    with expect_misuse(gpu, "on two streams"), pytest.raises(BackendError):
        driver.copy_to_host(np.zeros(1), address, second)
    driver.synchronise(first)
    driver.free(address)
    driver.destroy_stream(first)
    driver.destroy_stream(second)


def test_an_unknown_stream_is_noticed(driver: Driver, gpu: FakeGpu) -> None:
    with expect_misuse(gpu, "does not exist"), pytest.raises(BackendError):
        driver.synchronise(1)


def test_a_leak_is_noticed(driver: Driver, gpu: FakeGpu) -> None:
    address = driver.allocate(8)
    with pytest.raises(AssertionError, match="1 allocations leaked"):
        gpu.check()
    driver.free(address)


# -- captures ---------------------------------------------------------------------------------


@pytest.fixture
def place(driver: Driver) -> Iterator[tuple[int, int]]:
    """A stream, and the address of 16 bytes of zeros."""
    stream, address = driver.create_stream(), driver.allocate(16)
    driver.zero(address, 16, stream)
    driver.synchronise(stream)
    yield stream, address
    driver.synchronise(stream)
    driver.free(address)
    driver.destroy_stream(stream)


def read(driver: Driver, stream: int, address: int) -> list[int]:
    values = np.empty(16, np.uint8)
    driver.copy_to_host(values, address, stream)
    driver.synchronise(stream)
    return values.tolist()


def test_zeros(driver: Driver, place: tuple[int, int]) -> None:
    stream, address = place
    assert read(driver, stream, address) == [0] * 16


def test_captured_work_happens_when_it_is_launched(
    driver: Driver, place: tuple[int, int], gpu: FakeGpu
) -> None:
    stream, address = place
    source = driver.allocate(16)
    driver.copy_to_device(source, np.arange(16, dtype=np.uint8), stream)
    graph = driver.capture(stream, lambda: driver.copy_on_device(address, source, 16, stream))
    assert read(driver, stream, address) == [0] * 16
    driver.launch(graph, stream)
    assert read(driver, stream, address) == list(range(16))
    driver.copy_to_device(source, np.full(16, 7, np.uint8), stream)
    driver.launch(graph, stream)
    assert read(driver, stream, address) == [7] * 16
    driver.free(source)
    with expect_misuse(gpu, "memory that was freed"), pytest.raises(BackendError):
        driver.launch(graph, stream)
    driver.destroy_graph(graph)


@pytest.mark.parametrize("forbidden", ["allocate", "synchronise", "upload", "download"])
def test_what_must_not_happen_in_a_capture_is_noticed(
    driver: Driver, place: tuple[int, int], gpu: FakeGpu, forbidden: str
) -> None:
    stream, address = place
    host = np.zeros(16, np.uint8)
    acts = {
        "allocate": lambda: driver.allocate(16) and None,
        "synchronise": lambda: driver.synchronise(stream),
        "upload": lambda: driver.copy_to_device(address, host, stream),
        "download": lambda: driver.copy_to_host(host, address, stream),
    }
    with expect_misuse(gpu, "during a capture"), pytest.raises(BackendError):
        driver.capture(stream, acts[forbidden])
    driver.copy_to_device(address, np.ones(16, np.uint8), stream)
    assert read(driver, stream, address) == [1] * 16, "the stream works on"


def test_a_capture_that_fails_leaves_a_stream_that_works(
    driver: Driver, place: tuple[int, int], gpu: FakeGpu
) -> None:
    stream, address = place

    def fail() -> None:
        driver.zero(address, 16, stream)
        raise BackendError("not to be captured")

    with pytest.raises(BackendError, match="not to be captured"):
        driver.capture(stream, fail)
    with pytest.raises(BackendError, match="cuStreamEndCapture: CUDA_ERROR_STREAM_CAPTURE_INVALI"):
        driver.capture(stream, gpu.invalidate)
    driver.copy_to_device(address, np.ones(16, np.uint8), stream)
    assert read(driver, stream, address) == [1] * 16


def test_a_graph_that_is_destroyed_under_work_is_noticed(
    driver: Driver, place: tuple[int, int], gpu: FakeGpu
) -> None:
    stream, address = place
    graph = driver.capture(stream, lambda: driver.zero(address, 16, stream))
    driver.launch(graph, stream)
    with expect_misuse(gpu, "destroyed while it runs"), pytest.raises(BackendError):
        driver.destroy_graph(graph)
