"""One engine, driven: profile, addresses, shapes, execution.

Each profile has an execution context of its own, so that prefill and decode never switch, and the
contexts of all engines share one scratch memory, because one stream runs them one after the other.
The memory of outputs is allocated when an engine is opened, from the largest shapes of its
profiles: KV caches that grow have it twice, since the graph reads the old cache while it writes
the grown one; those in place are read and written at one address.

With caches in place decode steps repeat: same shapes, same addresses, other values. A step that
is told nothing new is captured as a CUDA graph, and launched from there on until something moves.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from feather_edge.errors import BackendError
from feather_edge.graphs import CACHE_CAPACITY
from feather_edge.runtime.backends._device_memory import (
    ALIGNMENT,
    Buffer,
    CapturedGraph,
    DeviceMemory,
    DeviceTensor,
)
from feather_edge.runtime.backends.base import Graph, GraphLimits, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from feather_edge.engine_record import EngineRecord, OptimizationProfile
    from feather_edge.graphs import GraphSpec
    from feather_edge.runtime.backends._tensorrt_library import TensorRTLibrary


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Binding:
    """What a context was told: shapes, addresses (values of what is read on the host), scratch."""

    shapes: tuple[tuple[int, ...], ...]
    inputs: tuple[int | tuple[int, ...], ...]
    outputs: tuple[int, ...]
    scratch: int


@dataclass(kw_only=True)
class _Context:
    """An execution context, and what it is bound to.

    Attributes:
        profile: that it serves.
        context: TensorRT's.
        binding: that it was given last.
        output_shapes: that follow.
        on_host: arrays that it reads.
        captured: the run that ``binding`` describes.
    """

    profile: OptimizationProfile
    context: Any
    binding: _Binding | None = None
    output_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    on_host: list[NDArray[Any]] = field(default_factory=list)
    captured: CapturedGraph | None = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What all engines of a backend share.

    Attributes:
        library: TensorRT.
        memory: of the device.
        scratch: of all contexts.
        no_capture: why no run is captured as a CUDA graph; None where repeated runs are.
        notes: what users should know, each once, in order.
    """

    library: TensorRTLibrary
    memory: DeviceMemory
    scratch: Scratch
    no_capture: str | None = None
    notes: dict[str, None] = field(default_factory=dict)


class EngineGraph(Graph):
    """An opened engine; ``spec`` has the contract of the form that it was built from."""

    def __init__(
        self, machine: Machine, engine: Any, spec: GraphSpec, record: EngineRecord
    ) -> None:
        library, memory = machine.library, machine.memory
        self._library, self._memory, self._scratch = library, memory, machine.scratch
        self._machine = machine
        self.spec = spec
        self._in_place = spec.caches_in_place
        self.limits = _limits(spec, record.profiles)
        self._captures = bool(self._in_place) and machine.no_capture is None
        if self._in_place and machine.no_capture is not None:
            machine.notes[machine.no_capture] = None
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
        buffers = {name: self._memory.acquire(size) for name, size in self._output_bytes.items()}
        binding = self._binding(inputs, buffers)
        if binding != chosen.binding:
            self._bind(chosen, binding, inputs)
            self._execute(chosen)
        else:
            self._repeat(chosen, is_step=inputs[self.spec.inputs[0].name].shape[1] == 1)
        caches = {present: inputs[past] for present, past in self._in_place.items()}
        return caches | {
            spec.name: DeviceTensor(
                self._memory,
                shape=chosen.output_shapes[spec.name],
                dtype=np.dtype(spec.dtype),
                buffer=buffers[spec.name],
            )
            for spec in self.spec.outputs
            if spec.name in buffers
        }

    def _binding(self, inputs: Mapping[str, Tensor], buffers: Mapping[str, Buffer]) -> _Binding:
        caches = self._in_place.values()
        places: dict[str, int | tuple[int, ...]] = {}
        for spec in self.spec.inputs:
            tensor = inputs[spec.name]
            if spec.name in self._on_host:
                places[spec.name] = tuple(tensor.host_values().tolist())
            elif spec.name in caches:
                places[spec.name] = tensor.address_to_change()
            else:
                places[spec.name] = tensor.device_address()
        return _Binding(
            shapes=tuple(inputs[spec.name].shape for spec in self.spec.inputs),
            inputs=tuple(places.values()),
            outputs=tuple(buffer.address for buffer in buffers.values()),
            scratch=self._scratch.address,
        )

    def _bind(self, chosen: _Context, binding: _Binding, inputs: Mapping[str, Tensor]) -> None:
        """Tell a context where everything is; what it captured before is void."""
        context, names = chosen.context, [spec.name for spec in self.spec.inputs]
        chosen.binding = chosen.captured = None
        chosen.on_host = [inputs[n].host_values() for n in names if n in self._on_host]
        for array in chosen.on_host:  # read until the work has ended
            self._memory.hold(array)
        if binding.scratch:
            context.set_device_memory(binding.scratch, self._scratch.num_bytes)
        addresses: dict[str, int] = {
            name: inputs[name].host_values().ctypes.data if isinstance(place, tuple) else place
            for name, place in zip(names, binding.inputs, strict=True)
        }
        for name, shape in zip(names, binding.shapes, strict=True):
            address = addresses[name]
            self._expect(context.set_input_shape(name, shape), f"take the shape of {name}")
            self._expect(context.set_tensor_address(name, address), f"take the address of {name}")
        self._infer_shapes(context)
        outputs = dict(zip(self._output_bytes, binding.outputs, strict=True))
        outputs |= {present: addresses[past] for present, past in self._in_place.items()}
        for name, address in outputs.items():
            self._expect(context.set_tensor_address(name, address), f"write {name}")
        chosen.output_shapes = {n: tuple(context.get_tensor_shape(n)) for n in outputs}
        chosen.binding = binding

    def _repeat(self, chosen: _Context, *, is_step: bool) -> None:
        """Run with everything as it was, a decode step as a CUDA graph.

        TensorRT wants one run with the same shapes before it is captured, which came before.
        """
        if chosen.captured is None and is_step and self._captures:
            try:
                chosen.captured = self._memory.capture(lambda: self._execute(chosen))
            except BackendError as error:
                self._captures = False
                self._machine.notes[
                    f"decode steps of {self.spec.name} run without a CUDA graph: {error}"
                ] = None
        if chosen.captured is None:
            self._execute(chosen)
        else:
            chosen.captured.launch()

    def _execute(self, chosen: _Context) -> None:
        self._expect(chosen.context.execute_async_v3(self._memory.stream), "run")

    def _choose(self, inputs: Mapping[str, Tensor]) -> _Context:
        """Return the context whose profile takes these inputs."""
        sizes = {}
        for spec in self.spec.inputs:
            tensor = inputs.get(spec.name)
            if tensor is None:
                raise BackendError(f"graph {self.spec.name} misses input {spec.name}")
            if tensor.dtype != spec.dtype or len(tensor.shape) != len(spec.shape):
                raise BackendError(
                    f"graph {self.spec.name} got {spec.name} as {tensor.dtype} "
                    f"{list(tensor.shape)}, but takes {spec.dtype} {list(spec.shape)}"
                )
            on_host = spec.name in self._on_host
            sizes[spec.name] = tuple(tensor.values().tolist()) if on_host else tensor.shape
        distances = [
            {name: each.profile.inputs[name].distance(size) for name, size in sizes.items()}
            for each in self._contexts
        ]
        # A step fits prefill as well where caches are in place; profiles get narrower.
        best = min(
            range(len(distances)), key=lambda index: (sum(distances[index].values()), -index)
        )
        if not any(distances[best].values()):
            return self._contexts[best]
        name = next(name for name, distance in distances[best].items() if distance)
        profile = self._contexts[best].profile
        span = profile.inputs[name]
        raise BackendError(
            f"graph {self.spec.name} got {name} {list(sizes[name])}, but the profile "
            f"{profile.name} of its engine takes {list(span.min)} to {list(span.max)}; shorten "
            f"the prompt or the answer, give fewer images, or raise the limits of build-engine"
        )

    def _infer_shapes(self, context: Any) -> None:
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            raise BackendError(self._failure(f"infer shapes ({error})")) from error
        if missing:
            raise BackendError(self._failure(f"infer shapes without {', '.join(missing)}"))

    def _reserve_outputs(self) -> dict[str, int]:
        """Allocate the outputs' memory for the largest shapes; returns the bytes of each.

        Caches in place are no outputs of their own; those of one sequence are allocated.
        """
        outputs = [spec for spec in self.spec.outputs if spec.name not in self._in_place]
        sizes = dict.fromkeys((spec.name for spec in outputs), ALIGNMENT)
        for each in self._contexts:
            held = []
            for spec in self.spec.inputs:
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
            for spec in outputs:
                shape = np.array(each.context.get_tensor_shape(spec.name), np.int64)
                if (shape < 0).any():
                    raise BackendError(
                        f"the engine of {self.spec.name} does not know the shape of {spec.name} "
                        f"before it runs, which a feather-edge graph never leaves open; export "
                        f"and build it again"
                    )
                num_bytes = int(shape.prod()) * np.dtype(spec.dtype).itemsize
                sizes[spec.name] = max(sizes[spec.name], num_bytes)
        for name, num_bytes in sizes.items():
            self._memory.reserve(num_bytes, count=2 if name in self.spec.caches else 1)
        for spec in self.spec.inputs:
            if spec.name in self._in_place.values():
                shape = np.array(self._contexts[0].profile.inputs[spec.name].min, np.int64)
                num_bytes = int(shape.prod()) * np.dtype(spec.dtype).itemsize
                self._memory.reserve(num_bytes, count=1)
        return sizes

    def _expect(self, is_success: bool | None, action: str) -> None:
        # Some setters of some versions return nothing and raise instead.
        if is_success is False:
            raise BackendError(self._failure(action))

    def _failure(self, action: str) -> str:
        return (
            f"{self._library.backend} could not {action} in graph {self.spec.name}"
            f"{self._library.last_error}"
        )


def _limits(spec: GraphSpec, profiles: Sequence[OptimizationProfile]) -> GraphLimits:
    """Return what the profiles of an engine bind its graph to."""
    largest: dict[str, int] = {}
    for profile in profiles:
        for tensor in spec.inputs:
            sizes = dict(zip(tensor.shape, profile.inputs[tensor.name].max, strict=True))
            # Its only dimension is 1, its range that of its value.
            sizes = {"num_kept": sizes[1]} if tensor.name == "num_kept" else sizes
            for dim, size in sizes.items():
                largest[str(dim)] = max(largest.get(str(dim), 0), size)
    return GraphLimits(
        max_rows=largest.get("sequence"),
        max_kept=largest.get("num_kept"),
        capacity=largest.get(CACHE_CAPACITY),
    )
