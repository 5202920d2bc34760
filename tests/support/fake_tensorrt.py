"""A module ``tensorrt`` whose engines run ONNX Runtime on the memory of a ``FakeGpu``.

It has the names that feather-edge uses at run time and no others, checks what TensorRT demands
of its callers, and computes when the stream is synchronised. What it gives is what ONNX Runtime
gives for the same graph: it proves how engines are driven, never what an engine computes.
"""

from __future__ import annotations

import ctypes
import enum
import json
import types
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from support.fake_cuda import Misuse
from support.fake_tensorrt_builder import MAGIC, Builder, DataType

if TYPE_CHECKING:
    from support.fake_cuda import Allocation, FakeGpu

__all__ = ["fake_tensorrt"]


NUMPY = {
    DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT64: np.int64,
    DataType.BOOL: np.bool_, DataType.INT32: np.int32,
}  # fmt: skip
TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
TensorLocation = enum.Enum("TensorLocation", "DEVICE HOST")
Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")
Strategy = enum.Enum("Strategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED")


class ILogger:
    """What a program subclasses."""

    def __init__(self) -> None:
        self.is_initialised = True


def fake_tensorrt(gpu: FakeGpu, *, version: str = "10.3.0", name: str = "tensorrt") -> Any:
    """Return the module; ``module.contexts`` lists the contexts that were made."""
    module: Any = types.ModuleType(name)
    module.__version__ = version
    module.ILogger = ILogger
    module.TensorIOMode = TensorIOMode
    module.TensorLocation = TensorLocation
    module.ExecutionContextAllocationStrategy = Strategy
    module.contexts = []
    module.libraries = []
    module.init_libnvinfer_plugins = lambda _logger, namespace: namespace == ""
    registry = types.SimpleNamespace(load_library=partial(_load_library, module.libraries))
    module.get_plugin_registry = lambda: registry
    module.Runtime = partial(_Runtime, gpu, module)
    module.DataType = DataType
    module.Builder = partial(Builder, version)
    module.NetworkDefinitionCreationFlag = types.SimpleNamespace(STRONGLY_TYPED=1)
    return module


def _load_library(libraries: list[str], path: str) -> object | None:
    if Path(path).read_bytes() == b"damaged":
        return None
    libraries.append(path)
    return object()


class _Runtime:
    def __init__(self, gpu: FakeGpu, module: Any, logger: Any) -> None:
        assert logger.is_initialised, "ILogger.__init__ was not called"
        self._gpu, self._module, self._logger = gpu, module, logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> _Engine | None:
        try:
            document = json.loads(bytes(serialized_engine))
        except ValueError:
            document = {}
        if document.get("magic") != MAGIC or document["version"] != self._module.__version__:
            self._logger.log(Severity.ERROR, "Error Code 6: API Usage Error (bad plan)\nmore")
            self._logger.log(Severity.WARNING, "and a warning")
            return None
        return _Engine(self._gpu, self._module, self._logger, document)


class _Engine:
    def __init__(self, gpu: FakeGpu, module: Any, logger: Any, document: dict[str, Any]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            document["model"], sess_options=options, providers=["CPUExecutionProvider"]
        )
        self.gpu, self._module, self.logger = gpu, module, logger
        self.profiles = document["profiles"]
        self.inputs = {each.name: each for each in self.session.get_inputs()}
        self.outputs = {each.name: each for each in self.session.get_outputs()}
        self._names = [*self.inputs, *self.outputs]
        self.device_memory_size_v2 = document["scratch_bytes"]
        self.num_io_tensors = len(self._names)
        self.num_optimization_profiles = len(self.profiles)
        self.taken_profiles: set[int] = set()

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType((self.inputs | self.outputs)[name].type)

    def get_aliased_input_tensor(self, name: str) -> str | None:
        if "write_indices" not in self.inputs or not name.startswith("present."):
            return None
        return name.replace("present", "past_key_values")

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name == "num_kept" else TensorLocation.DEVICE

    def create_execution_context(self, strategy: Strategy) -> _ExecutionContext | None:
        if strategy is not Strategy.USER_MANAGED:
            raise Misuse("contexts of one stream can share their memory")
        context = _ExecutionContext(self)
        self._module.contexts.append(context)
        return context


@dataclass(kw_only=True)
class Execution:
    """What one execution was given: shapes, and the addresses of its inputs and outputs."""

    profile: int
    shapes: dict[str, tuple[int, ...]]
    addresses: dict[str, int]


class _ExecutionContext:
    def __init__(self, engine: _Engine) -> None:
        self._engine, self._gpu = engine, engine.gpu
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._inferred: dict[str, tuple[int, ...]] | None = None
        self._memory = (0, 0)
        self._shapes_run: dict[str, tuple[int, ...]] = {}
        self.executions: list[Execution] = []

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if profile_index in self._engine.taken_profiles:
            raise Misuse("two contexts share a profile")
        self._engine.taken_profiles.add(profile_index)
        self._gpu.enqueue(stream_handle, [], lambda: None)
        self._profile = profile_index
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        self._gpu.find(memory, size)
        if memory % 256 or size < self._engine.device_memory_size_v2:
            raise Misuse(f"{size} bytes of scratch memory at {memory:#x}")
        self._memory = (memory, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert isinstance(shape, tuple)
        low, _, high = self._engine.profiles[self._known_profile()][name]
        is_value = self._engine.get_tensor_location(name) is TensorLocation.HOST
        sizes = [(1, 1)] if is_value else list(zip(low, high, strict=True))
        fits = len(shape) == len(sizes)
        if not fits or not all(a <= s <= b for s, (a, b) in zip(shape, sizes, strict=True)):
            message = f"{name} {shape} is outside the profile"
            self._engine.logger.log(Severity.ERROR, message)
            return False
        self._shapes[name] = shape
        self._inferred = None
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if memory % 256:
            raise Misuse(f"the address of {name} is not aligned")
        if self._engine.get_tensor_location(name) is TensorLocation.HOST:
            self._gpu.host_address(memory)
        else:
            self._gpu.find(memory, 1)
        self._addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        inputs = self._engine.inputs
        missing = [name for name in inputs if name not in self._shapes]
        if "num_kept" in inputs and "num_kept" not in self._addresses:
            missing.append("num_kept")
        if not missing:
            self._inferred = self._output_shapes()
        return missing

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if self._inferred is None:
            raise Misuse("a shape was read before infer_shapes")
        return {**self._shapes, **self._inferred}[name]

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self._inferred is None:
            raise Misuse("executed before infer_shapes")
        scratch, num_bytes = self._memory
        if num_bytes < self._engine.device_memory_size_v2:
            raise Misuse("executed without scratch memory")
        shapes = {**self._shapes, **self._inferred}
        addresses = dict(self._addresses)
        is_capturing = self._gpu.is_capturing(stream_handle)
        if is_capturing and shapes != self._shapes_run:
            raise Misuse("captured before a run with these shapes")
        touched = self._touched(shapes)
        execution = Execution(profile=self._known_profile(), shapes=shapes, addresses=addresses)
        # What is read on the host is fixed in a captured graph.
        fixed = self._host_inputs(execution) if is_capturing else {}

        def begin() -> None:
            if is_capturing and (addresses, shapes) != (
                self._addresses,
                {**self._shapes, **(self._inferred or {})},
            ):
                raise Misuse("a captured graph of a context that was told something else since")
            self._shapes_run = shapes
            self.executions.append(execution)

        def work() -> None:
            self._gpu.poison(scratch, num_bytes)
            self._compute(execution, fixed)

        self._gpu.enqueue(stream_handle, touched, work, begin)
        return True

    def _touched(self, shapes: dict[str, tuple[int, ...]]) -> list[Allocation]:
        """Return the memory that a run uses, after checking who may overwrite what."""
        addresses = self._addresses
        touched, written = [], []
        for name, shape in shapes.items():
            if self._engine.get_tensor_location(name) is TensorLocation.HOST:
                continue
            each, place = self._gpu.find(addresses[name], self._num_bytes(name, shape))
            past = self._engine.get_aliased_input_tensor(name)
            if past is not None:
                if addresses[name] != addresses[past]:
                    raise Misuse(f"{name} is not where {past} is")
                continue
            if name in self._engine.outputs:
                written.append((each, place))
            touched.append((each, place))
        _check_overlaps(touched, written)
        return [each for each, _ in touched]

    def _host_inputs(self, execution: Execution) -> dict[str, np.ndarray]:
        return {
            name: self._read(name, execution.shapes[name], execution.addresses[name])
            for name in self._engine.inputs
            if self._engine.get_tensor_location(name) is TensorLocation.HOST
        }

    def _compute(self, execution: Execution, fixed: dict[str, np.ndarray]) -> None:
        shapes, addresses = execution.shapes, execution.addresses
        feeds = {
            name: fixed[name] if name in fixed else self._read(name, shapes[name], addresses[name])
            for name in self._engine.inputs
        }
        outputs = self._engine.session.run(None, feeds)
        for name, values in zip(self._engine.outputs, outputs, strict=True):
            assert values.shape == shapes[name], (name, values.shape, shapes[name])
            each, place = self._gpu.find(addresses[name], values.nbytes)
            each.values[place] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)

    def _read(self, name: str, shape: tuple[int, ...], address: int) -> np.ndarray:
        dtype = NUMPY[self._engine.get_tensor_dtype(name)]
        num_bytes = self._num_bytes(name, shape)
        if self._engine.get_tensor_location(name) is TensorLocation.HOST:
            return np.frombuffer(ctypes.string_at(address, num_bytes), dtype).reshape(shape)
        each, place = self._gpu.find(address, num_bytes)
        return each.values[place].copy().view(dtype).reshape(shape)

    def _num_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        dtype = NUMPY[self._engine.get_tensor_dtype(name)]
        return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize

    def _output_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return what follows from the inputs; sizes of no name are learnt from a run on zeros."""
        sizes: dict[str, int] = {}
        for name, tensor in self._engine.inputs.items():
            for dim, size in zip(tensor.shape, self._shapes[name], strict=True):
                if isinstance(dim, str) and sizes.setdefault(dim, size) != size:
                    raise RuntimeError(f"{dim} is {sizes[dim]} and {size}")
        if "num_kept" in self._engine.inputs:
            values = self._read("num_kept", (1,), self._addresses["num_kept"])
            low, _, high = self._engine.profiles[self._known_profile()]["num_kept"]
            if not low[0] <= values[0] <= high[0]:
                raise RuntimeError(f"num_kept {values[0]} is outside the profile")
            sizes["kept"] = int(values[0])
        shapes = {
            name: tuple(
                sizes.get(dim, -1) if isinstance(dim, str) else dim for dim in tensor.shape
            )
            for name, tensor in self._engine.outputs.items()
        }
        if any(-1 in shape for shape in shapes.values()):
            feeds = {
                name: np.zeros(self._shapes[name], NUMPY[self._engine.get_tensor_dtype(name)])
                for name in self._engine.inputs
            }
            results = self._engine.session.run(None, feeds)
            return dict(zip(shapes, (each.shape for each in results), strict=True))
        return shapes

    def _known_profile(self) -> int:
        if self._profile is None:
            raise Misuse("the context has no profile")
        return self._profile


def _check_overlaps(
    touched: list[tuple[Allocation, slice]], written: list[tuple[Allocation, slice]]
) -> None:
    """No output may lie over anything else: the graph reads while it writes."""
    for each, place in written:
        overlapping = [
            other
            for other, range_ in touched
            if other is each and range_.start < place.stop and place.start < range_.stop
        ]
        if len(overlapping) > 1:
            raise Misuse("an output overwrites what the same graph reads or writes")
