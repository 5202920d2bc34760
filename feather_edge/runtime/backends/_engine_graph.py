"""One engine, driven: profile, addresses, shapes, execution.

Each profile has an execution context of its own, so that prefill and decode never switch, and the
contexts of all engines share one scratch memory, because one stream runs them one after the other.
The memory of outputs is allocated when an engine is opened, from the largest shapes of its
profiles: KV caches have it twice, since the graph reads the old cache while it writes the grown
one.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from feather_edge.errors import BackendError
from feather_edge.runtime.backends._device_memory import (
    ALIGNMENT,
    Buffer,
    DeviceMemory,
    DeviceTensor,
)
from feather_edge.runtime.backends.base import Graph, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feather_edge.engine_record import EngineRecord, OptimizationProfile
    from feather_edge.graphs import GraphSpec
    from feather_edge.runtime.backends._tensorrt_library import TensorRTLibrary

_CACHE_PREFIX = "present."


class Scratch:
    """Memory that all contexts compute in, one after the other."""

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._buffer: Buffer | None = None

    def grow(self, num_bytes: int) -> None:
        """Make it at least this large."""
        outgrown = self.num_bytes
        if num_bytes > outgrown:
            self._buffer = None
            self._memory.trim(outgrown)
            self._buffer = self._memory.acquire(num_bytes)

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return 0 if self._buffer is None else self._buffer.num_bytes

    @property
    def address(self) -> int:
        """Where it is now; 0 where no engine needs any."""
        return 0 if self._buffer is None else self._buffer.address


@dataclass(kw_only=True)
class _Context:
    """An execution context, the profile that it serves, and the scratch memory it was given."""

    profile: OptimizationProfile
    context: Any
    scratch_address: int = 0


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What all engines of a backend share."""

    library: TensorRTLibrary
    memory: DeviceMemory
    scratch: Scratch


class EngineGraph(Graph):
    """An opened engine."""

    def __init__(
        self, machine: Machine, engine: Any, spec: GraphSpec, record: EngineRecord
    ) -> None:
        library, memory = machine.library, machine.memory
        self._library, self._memory, self._scratch = library, memory, machine.scratch
        self._spec = spec
        self._on_host = {t.name for t in spec.inputs if library.is_on_host(engine, t.name)}
        self._scratch.grow(engine.device_memory_size_v2)
        self._contexts = [
            _Context(profile=profile, context=library.create_context(engine, index, memory.stream))
            for index, profile in enumerate(record.profiles)
        ]
        memory.synchronise()
        self._output_bytes = self._reserve_outputs()

    def __del__(self) -> None:
        # A context must outlive its work.
        if not sys.is_finalizing():
            with contextlib.suppress(BackendError):  # a GPU that failed has nothing to wait for
                self._memory.synchronise()

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Graph.run``; returns when the work is enqueued."""
        chosen = self._choose(inputs)
        context = chosen.context
        self._bind_scratch(chosen)
        for name in (tensor.name for tensor in self._spec.inputs):
            tensor = inputs[name]
            if name in self._on_host:
                address = tensor.host_values().ctypes.data
                self._memory.hold(tensor.host_values())  # read until the work has ended
            else:
                address = tensor.device_address()
            self._expect(context.set_input_shape(name, tensor.shape), f"take the shape of {name}")
            self._expect(context.set_tensor_address(name, address), f"take the address of {name}")
        self._infer_shapes(context)
        outputs = {}
        for spec in self._spec.outputs:
            buffer = self._memory.acquire(self._output_bytes[spec.name])
            shape = tuple(context.get_tensor_shape(spec.name))
            self._expect(
                context.set_tensor_address(spec.name, buffer.address), f"write {spec.name}"
            )
            outputs[spec.name] = DeviceTensor(
                self._memory, shape=shape, dtype=np.dtype(spec.dtype), buffer=buffer
            )
        self._expect(context.execute_async_v3(self._memory.stream), "run")
        return outputs

    def _choose(self, inputs: Mapping[str, Tensor]) -> _Context:
        """Return the context whose profile takes these inputs."""
        sizes = {}
        for spec in self._spec.inputs:
            tensor = inputs.get(spec.name)
            if tensor is None:
                raise BackendError(f"graph {self._spec.name} misses input {spec.name}")
            if tensor.dtype != spec.dtype or len(tensor.shape) != len(spec.shape):
                raise BackendError(
                    f"graph {self._spec.name} got {spec.name} as {tensor.dtype} "
                    f"{list(tensor.shape)}, but takes {spec.dtype} {list(spec.shape)}"
                )
            on_host = spec.name in self._on_host
            sizes[spec.name] = tuple(tensor.values().tolist()) if on_host else tensor.shape
        distances = [
            {name: each.profile.inputs[name].distance(size) for name, size in sizes.items()}
            for each in self._contexts
        ]
        best = min(range(len(distances)), key=lambda index: sum(distances[index].values()))
        if not any(distances[best].values()):
            return self._contexts[best]
        name = next(name for name, distance in distances[best].items() if distance)
        profile = self._contexts[best].profile
        span = profile.inputs[name]
        raise BackendError(
            f"graph {self._spec.name} got {name} {list(sizes[name])}, but the profile "
            f"{profile.name} of its engine takes {list(span.min)} to {list(span.max)}; shorten "
            f"the prompt or the answer, give fewer images, or raise the limits of build-engine"
        )

    def _bind_scratch(self, chosen: _Context) -> None:
        if self._scratch.address != chosen.scratch_address:
            chosen.context.set_device_memory(self._scratch.address, self._scratch.num_bytes)
            chosen.scratch_address = self._scratch.address

    def _infer_shapes(self, context: Any) -> None:
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            raise BackendError(self._failure(f"infer shapes ({error})")) from error
        if missing:
            raise BackendError(self._failure(f"infer shapes without {', '.join(missing)}"))

    def _reserve_outputs(self) -> dict[str, int]:
        """Allocate the outputs' memory for the largest shapes; returns the bytes of each."""
        sizes = dict.fromkeys((spec.name for spec in self._spec.outputs), ALIGNMENT)
        for each in self._contexts:
            held = []
            for spec in self._spec.inputs:
                largest = each.profile.inputs[spec.name].max
                if spec.name in self._on_host:
                    values = np.array(largest, spec.dtype)
                    held.append(DeviceTensor.of_array(self._memory, values).host_values())
                    each.context.set_tensor_address(spec.name, held[-1].ctypes.data)
                    largest = values.shape
                self._expect(
                    each.context.set_input_shape(spec.name, largest), f"take {spec.name} {largest}"
                )
            self._infer_shapes(each.context)
            for spec in self._spec.outputs:
                shape = np.array(each.context.get_tensor_shape(spec.name), np.int64)
                if (shape < 0).any():
                    raise BackendError(
                        f"the engine of {self._spec.name} does not know the shape of {spec.name} "
                        f"before it runs, which a feather-edge graph never leaves open; export "
                        f"and build it again"
                    )
                num_bytes = int(shape.prod()) * np.dtype(spec.dtype).itemsize
                sizes[spec.name] = max(sizes[spec.name], num_bytes)
        for name, num_bytes in sizes.items():
            self._memory.reserve(num_bytes, count=2 if name.startswith(_CACHE_PREFIX) else 1)
        return sizes

    def _expect(self, is_success: bool | None, action: str) -> None:
        # Some setters of some versions return nothing and raise instead.
        if is_success is False:
            raise BackendError(self._failure(action))

    def _failure(self, action: str) -> str:
        return (
            f"{self._library.backend} could not {action} in graph {self._spec.name}"
            f"{self._library.last_error}"
        )
