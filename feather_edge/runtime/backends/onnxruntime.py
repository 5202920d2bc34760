"""ONNX Runtime, on the CPU or on a CUDA device.

Inputs and outputs are bound as ``OrtValue`` handles, so with onnxruntime-gpu hidden states and
caches stay on the device from graph to graph. The CUDA path is the same code with another device
name; it cannot be exercised on a machine without a GPU.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from feather_edge.errors import BackendError
from feather_edge.runtime.backends._causal_caches import with_caches_in_place
from feather_edge.runtime.backends.base import Backend, Graph, Tensor
from feather_edge.runtime.threads import default_num_threads

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from feather_edge.graphs import GraphSpec


class OnnxRuntimeBackend(Backend):
    """Runs graphs with ONNX Runtime on CUDA where it is available, else on the CPU.

    Args:
        device: ``cpu`` or ``cuda``; None takes CUDA when the installed package has it.
        num_threads: of one graph run on the CPU; None is one for each physical core that the
            process may use.
        causal_heads: query heads of the decoder, if its prompts are causal: on the CPU its caches
            are then kept in place. None runs every graph as it is.
        share_weights: leave weights in the bundle's mapped files, which all sessions and processes
            share, instead of copying them into the layout that multiplies fastest.

    Raises:
        BackendError: if onnxruntime is not installed or lacks the device.
    """

    name = "onnxruntime"
    opens_in_parallel = True
    continues_prompts = True

    def __init__(
        self,
        *,
        device: str | None = None,
        num_threads: int | None = None,
        causal_heads: int | None = None,
        share_weights: bool = False,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendError(
                "backend onnxruntime is not installed; "
                "run: pip install 'feather-edge[ort]' (or 'feather-edge[gpu]' for CUDA)"
            ) from error
        self._ort = onnxruntime
        providers = onnxruntime.get_available_providers()
        available = ["cuda"] * ("CUDAExecutionProvider" in providers) + ["cpu"]
        self.device = device or available[0]
        if self.device not in available:
            raise BackendError(
                f"device {device!r} is not available in onnxruntime {onnxruntime.__version__}; "
                f"available: {', '.join(available)}; CUDA needs: pip install 'feather-edge[gpu]'"
            )
        self.num_threads = num_threads
        self._causal_heads = causal_heads if self.device == "cpu" else None
        self._share_weights = share_weights
        self._options = self._new_options()

    def open(self, file: Path, spec: GraphSpec) -> Graph:
        """See ``Backend.open``."""
        if self._causal_heads is not None:
            rewritten = with_caches_in_place(file, spec, num_heads=self._causal_heads)
            if rewritten is not None:
                model, spec = rewritten
                return self.open_model(model, spec, weights=file.parent, label=str(file))
        return self._open(os.fspath(file), spec, self._options, label=str(file))

    def open_model(
        self, model: bytes, spec: GraphSpec, *, weights: Path, label: str | None = None
    ) -> Graph:
        """Open a graph that lies in memory, its weights in files of the folder ``weights``.

        Errors call it ``label``; None is its own name.

        Raises:
            BackendError: if it cannot be loaded.
        """
        options = self._new_options()
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", os.fspath(weights)
        )
        return self._open(model, spec, options, label=label or spec.name)

    def _open(self, model: str | bytes, spec: GraphSpec, options: Any, *, label: str) -> Graph:
        cpu = ["CPUExecutionProvider"]
        providers = ["CUDAExecutionProvider", *cpu] if self.device == "cuda" else cpu
        if any(tensor.dtype == "bfloat16" for tensor in (*spec.inputs, *spec.outputs)):
            raise BackendError(
                f"graph {spec.name} is bf16, which onnxruntime has too few operators for; build "
                f"engines and run those with --backend tensorrt, or export with --precision fp32 "
                f"or fp16, or --activations fp32"
            )
        try:
            session = self._ort.InferenceSession(model, sess_options=options, providers=providers)
        except Exception as error:
            raise BackendError(f"onnxruntime cannot load {label}: {_first_line(error)}") from error
        return _OnnxRuntimeGraph(session, spec, self.device)

    def _new_options(self) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.num_threads or default_num_threads()
        # Each graph has a pool of its own; waiting threads that spin would starve the next graph.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self._share_weights:
            options.add_session_config_entry("session.disable_prepacking", "1")
        return options

    def upload(self, array: NDArray[np.generic]) -> Tensor:
        """See ``Backend.upload``."""
        return self._ort.OrtValue.ortvalue_from_numpy(array, self.device, 0)

    def download(self, tensor: Tensor) -> NDArray[Any]:
        """See ``Backend.download``."""
        # A copy: what ``numpy`` returns may end with the handle.
        return np.array(tensor.numpy())


class _OnnxRuntimeGraph(Graph):
    def __init__(self, session: Any, spec: GraphSpec, device: str) -> None:
        self.spec = spec
        self._in_place = spec.caches_in_place
        self._session = session
        self._device = device

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        binding = self._session.io_binding()
        for tensor in self.spec.inputs:
            binding.bind_ortvalue_input(tensor.name, inputs[tensor.name])
        for tensor in self.spec.outputs:
            if tensor.name in self._in_place:
                cache = inputs[self._in_place[tensor.name]]
                binding.bind_ortvalue_output(tensor.name, cache)
            else:
                binding.bind_output(tensor.name, self._device)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise BackendError(
                f"onnxruntime failed in graph {self.spec.name}: {_first_line(error)}"
            ) from error
        names = [tensor.name for tensor in self.spec.outputs]
        outputs = dict(zip(names, binding.get_outputs(), strict=True))
        # The handle that was given keeps the memory alive; a new one of the same memory does not.
        return outputs | {name: inputs[past] for name, past in self._in_place.items()}


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
