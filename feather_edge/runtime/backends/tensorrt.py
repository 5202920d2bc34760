"""TensorRT and TensorRT-RTX: engines of a bundle, run on the GPU that they were built for.

Each graph is one engine with one execution context per optimisation profile, so that prefill and
decode never switch. Tensors stay on the device from segment to segment; contexts share one scratch
memory, because one stream runs them one after the other. The memory of outputs is allocated when
an engine is opened, from the largest shapes of its profiles: KV caches have it twice, since the
graph reads the old cache while it writes the grown one (see ``_device_memory``).

A decode step is not captured as a CUDA graph: with caches that grow by ``Concat`` its shapes
differ from step to step (docs/log.md).
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from feather_edge.engine_record import (
    check_fit,
    engine_file,
    engine_folder,
    engine_targets,
    read_record,
    rebuild_command,
)
from feather_edge.errors import BackendError
from feather_edge.runtime.backends._cuda import Driver
from feather_edge.runtime.backends._device_memory import (
    ALIGNMENT,
    Buffer,
    DeviceMemory,
    DeviceTensor,
)
from feather_edge.runtime.backends._tensorrt_library import TensorRTLibrary
from feather_edge.runtime.backends.base import Backend, Graph, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from feather_edge.bundle import Bundle
    from feather_edge.engine_record import EngineRecord, OptimizationProfile
    from feather_edge.graphs import GraphSpec

_CACHE_PREFIX = "present."


class TensorRTBackend(Backend):
    """Runs the engines of one target of a bundle.

    Args:
        bundle: whose engines.
        target: as ``build-engine --target`` had it; None takes the only one there is.
        name: ``tensorrt`` or ``tensorrt-rtx``.

    Raises:
        BackendError: if TensorRT or a GPU is missing, or the target is.
    """

    device = "cuda"

    def __init__(self, bundle: Bundle, *, target: str | None = None, name: str) -> None:
        self.name = name
        self._bundle = bundle
        self._target = _choose_target(bundle, target)
        self._library = TensorRTLibrary(name)
        self._driver = Driver()
        self._memory = DeviceMemory(self._driver)
        self._scratch = _Scratch(self._memory)
        self._plugins: set[str] = set()

    def open(self, file: Path, spec: GraphSpec) -> Graph:  # noqa: ARG002 - the engine is opened
        """Open the engine of a graph, after its record was compared with this machine."""
        bundle, target = self._bundle, self._target
        record = read_record(bundle.path, target, spec.name)
        folder = engine_folder(bundle.path, target)
        check_fit(
            record,
            bundle,
            spec,
            backend=self.name,
            tensorrt_version=self._library.version,
            device_name=self._driver.device_name,
            compute_capability=self._driver.compute_capability,
            plugin_sha256=self._load_plugin(folder, record),
        )
        engine = self._library.load_engine(engine_file(folder, spec.name))
        remedy = f"rebuild it with: {rebuild_command(bundle.path, target)} -f"
        _check_contract(self._library.tensors(engine), spec, remedy)
        if engine.num_optimization_profiles != len(record.profiles):
            raise BackendError(
                f"the engine of {spec.name} has {engine.num_optimization_profiles} profiles, its "
                f"record {len(record.profiles)}; {remedy}"
            )
        return _EngineGraph(self._library, self._memory, self._scratch, engine, spec, record)

    def upload(self, array: NDArray[np.generic]) -> Tensor:
        """See ``Backend.upload``."""
        return DeviceTensor.of_array(self._memory, array)

    def download(self, tensor: Tensor) -> NDArray[Any]:
        """See ``Backend.download``."""
        array: NDArray[Any] = tensor.values()
        return array

    def take_rows(self, tensor: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """See ``Backend.take_rows``; the rows are copied on the device."""
        return tensor.take_rows(rows)

    def _load_plugin(self, folder: Path, record: EngineRecord) -> str | None:
        """Load the plugin of an engine, which lies beside it; returns its hash."""
        if record.plugin is None:
            return None
        library = folder / record.plugin
        if not library.is_file():
            raise BackendError(
                f"the engine of {record.graph} needs the plugin {record.plugin}, which is not in "
                f"{folder}; copy it there, or rebuild with: "
                f"{rebuild_command(self._bundle.path, self._target)}"
            )
        digest = hashlib.sha256(library.read_bytes()).hexdigest()
        if digest == record.plugin_sha256 and digest not in self._plugins:
            self._library.load_plugin(library)
            self._plugins.add(digest)
        return digest


class _Scratch:
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


class _EngineGraph(Graph):
    def __init__(
        self,
        library: TensorRTLibrary,
        memory: DeviceMemory,
        scratch: _Scratch,
        engine: Any,
        spec: GraphSpec,
        record: EngineRecord,
    ) -> None:
        self._library = library
        self._memory = memory
        self._scratch = scratch
        self._spec = spec
        self._on_host = {t.name for t in spec.inputs if library.is_on_host(engine, t.name)}
        scratch.grow(engine.device_memory_size_v2)
        self._contexts = [
            _Context(profile=profile, context=library.create_context(engine, index, memory.stream))
            for index, profile in enumerate(record.profiles)
        ]
        memory.synchronise()
        self._output_bytes = self._reserve_outputs()

    def __del__(self) -> None:
        # A context must outlive its work; __init__ may have failed before there was any.
        if not sys.is_finalizing():
            self._memory.synchronise()

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Graph.run``; returns when the work is enqueued."""
        chosen = self._choose(inputs)
        context = chosen.context
        self._bind_scratch(chosen)
        for name in (tensor.name for tensor in self._spec.inputs):
            tensor = inputs[name]
            if name in self._on_host:
                self._memory.hold(tensor)  # read until the work has ended
            address = tensor.host_address() if name in self._on_host else tensor.device_address()
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
            if tensor.dtype != spec.dtype:
                raise BackendError(
                    f"graph {self._spec.name} got {spec.name} as {tensor.dtype}, but takes "
                    f"{spec.dtype}"
                )
            on_host = spec.name in self._on_host
            sizes[spec.name] = tuple(tensor.values().tolist()) if on_host else tensor.shape
        misfits = [
            [name for name, size in sizes.items() if not each.profile.inputs[name].contains(size)]
            for each in self._contexts
        ]
        best = min(range(len(misfits)), key=lambda index: len(misfits[index]))
        if not misfits[best]:
            return self._contexts[best]
        name, profile = misfits[best][0], self._contexts[best].profile
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
                    held.append(DeviceTensor.of_array(self._memory, values))
                    each.context.set_tensor_address(spec.name, held[-1].host_address())
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

    def _expect(self, is_success: bool | None, action: str) -> None:  # noqa: FBT001
        # Some setters of some versions return nothing and raise instead.
        if is_success is False:
            raise BackendError(self._failure(action))

    def _failure(self, action: str) -> str:
        return (
            f"{self._library.backend} could not {action} in graph {self._spec.name}"
            f"{self._library.last_error}"
        )


def _choose_target(bundle: Bundle, target: str | None) -> str:
    found = engine_targets(bundle.path)
    if target is None and len(found) == 1:
        return found[0]
    if target is not None and target in found:
        return target
    wanted = f"has no engines for target {target}" if target else "has no engines"
    if found and target is None:
        raise BackendError(
            f"{bundle.path} has engines for {', '.join(found)}; choose one with --target"
        )
    raise BackendError(
        f"{bundle.path} {wanted}{f', only for {chr(44).join(found)}' if found else ''}; build "
        f"them on the device with: {rebuild_command(bundle.path, target or 'NAME')}"
    )


def _check_contract(found: Mapping[str, tuple[bool, str]], spec: GraphSpec, remedy: str) -> None:
    """Refuse an engine whose inputs, outputs or types are not the graph's."""
    wanted = {tensor.name: (True, str(tensor.dtype)) for tensor in spec.inputs}
    wanted |= {tensor.name: (False, str(tensor.dtype)) for tensor in spec.outputs}
    for name in [*wanted, *found]:
        if found.get(name) != wanted.get(name):
            raise BackendError(
                f"the engine of {spec.name} has {name} as {_described(found.get(name))}, its "
                f"graph as {_described(wanted.get(name))}; {remedy}"
            )


def _described(tensor: tuple[bool, str] | None) -> str:
    if tensor is None:
        return "nothing"
    is_input, dtype = tensor
    return f"{'input' if is_input else 'output'} {dtype}"
