"""The python modules of TensorRT and TensorRT-RTX at run time, and what their versions differ in.

Only names that 10.3, 10.13, 11.4 and TensorRT-RTX 1.7 all have are used, so nothing branches on a
version:

==================================================  =============================================
gone or new in some version                         used instead
==================================================  =============================================
``device_memory_size``                              ``device_memory_size_v2``
``create_execution_context_without_device_memory``  ``create_execution_context(USER_MANAGED)``
``context.device_memory``                           ``set_device_memory(address, size)``
``IStreamReader``, ``IStreamReaderV2``              the mapped file, as a buffer
``get_tensor_profile_values``, 32 bits in 10.3      the profiles of the engine's record
bindings by index, ``execute_async_v2``             tensors by name, ``execute_async_v3``
==================================================  =============================================
"""

from __future__ import annotations

import importlib
import mmap
from typing import TYPE_CHECKING, Any

from feather_edge.errors import BackendError

if TYPE_CHECKING:
    from pathlib import Path

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
INSTALL = {
    "tensorrt": "on a Jetson use JetPack's own package in a venv made with "
    "--system-site-packages, elsewhere run: pip install 'feather-edge[tensorrt]'",
    "tensorrt-rtx": "run: pip install 'feather-edge[rtx]'",
}
DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "INT32": "int32",
    "BOOL": "bool",
}  # fmt: skip
"""TensorRT's names of types, as graphs name them."""


class TensorRTLibrary:
    """One of the two modules, its log, and engines loaded with it.

    Args:
        backend: ``tensorrt`` or ``tensorrt-rtx``.

    Raises:
        BackendError: if it is not installed.
    """

    def __init__(self, backend: str) -> None:
        try:
            self.module = importlib.import_module(MODULES[backend])
        except ImportError as error:
            raise BackendError(
                f"backend {backend} is not installed ({error}); {INSTALL[backend]}"
            ) from error
        self.backend = backend
        self.version = str(self.module.__version__)
        self.logger = _logger(self.module)
        self._runtime: Any = None

    def load_plugin(self, library: Path) -> None:
        """Register the plugins of a library.

        Raises:
            BackendError: if it cannot be loaded.
        """
        trt = self.module
        if trt.get_plugin_registry().load_library(str(library)) is None:
            raise BackendError(f"{self.backend} cannot load the plugin {library}{self.last_error}")

    def load_engine(self, file: Path) -> Any:
        """Return the engine in a file; the file is mapped, not read into memory first.

        Raises:
            BackendError: if TensorRT refuses it.
        """
        with (
            file.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as plan,
        ):
            return self.deserialise(plan, str(file))

    def deserialise(self, plan: Any, name: str) -> Any:
        """Return the engine in a buffer; ``name`` is what messages call it."""
        trt = self.module
        if self._runtime is None:
            trt.init_libnvinfer_plugins(self.logger, "")
            self._runtime = trt.Runtime(self.logger)
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(
                f"{self.backend} {self.version} cannot load {name}{self.last_error}"
            )
        return engine

    def create_context(self, engine: Any, profile: int, stream: int) -> Any:
        """Return a context for one profile, which computes in memory that it is given."""
        trt = self.module
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = engine.create_execution_context(strategy)
        if context is None:
            raise BackendError(f"{self.backend} has no room for an engine{self.last_error}")
        context.set_optimization_profile_async(profile, stream)
        return context

    def tensors(self, engine: Any) -> dict[str, tuple[bool, str]]:
        """Return of every input and output of an engine: is it an input, and its type."""
        trt, found = self.module, {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            kind = engine.get_tensor_dtype(name).name
            found[name] = (is_input, DTYPES.get(kind, kind))
        return found

    def is_on_host(self, engine: Any, name: str) -> bool:
        """Return whether TensorRT reads a tensor on the host: its values decide shapes."""
        trt = self.module
        return bool(engine.get_tensor_location(name) == trt.TensorLocation.HOST)

    def aliased_input(self, engine: Any, output: str) -> str | None:
        """Return the input whose memory an output shares; versions that can have one."""
        name: str | None = engine.get_aliased_input_tensor(output)
        return name or None

    @property
    def last_error(self) -> str:
        """What TensorRT logged last, as the end of a message; read once."""
        text, self.logger.error = self.logger.error, ""
        return f": {text}" if text else ""


def _logger(trt: Any) -> Any:
    """Return a logger that keeps the last error; warnings at run time help nobody."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.error = ""

        def log(self, severity: Any, msg: str) -> None:
            if severity.name in ("INTERNAL_ERROR", "ERROR"):
                self.error = msg.strip().partition("\n")[0]

    return Logger()
