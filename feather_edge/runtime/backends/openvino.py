"""OpenVINO on the CPU: the same graphs, often faster on x86.

OpenVINO reads no functions of a model, so ``TopKUniformGather`` is told to it in its own
operators. It computes in the precision of the graphs; its own default would be bfloat16 wherever
the processor has it, which changes what is kept, so that is a backend of its own.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feather_edge.errors import BackendError
from feather_edge.runtime.backend_names import OPENVINO_BF16
from feather_edge.runtime.backends._appended_caches import InPlaceGraph, give_new_rows
from feather_edge.runtime.backends.base import Backend, Graph, Tensor
from feather_edge.runtime.threads import default_num_threads

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from feather_edge.graphs import GraphSpec

PRUNE_OP = ("TopKUniformGather", "feather")
CPU = "CPU"
SHAPES_KEPT = "CPU_RUNTIME_CACHE_CAPACITY"
"""What is compiled for shapes that have come once, in entries of each graph; undocumented."""

NUM_SHAPES_KEPT = 50
"""Its default is 5000, and every prompt and decode step is a new shape: see docs/log.md."""

GROUP_SIZE = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
CODE_TYPES = ("i8", "i4")
PRECISIONS = {"float32": "f32", "float16": "f16"}

_READING = threading.Lock()
"""Held while a model is read: OpenVINO keeps a lock of its own while it calls our converters, and
threads that wait for it hold the interpreter's, which a converter needs. See docs/log.md."""


class OpenVinoBackend(Backend):
    """Runs graphs with OpenVINO on the CPU.

    Args:
        num_threads: of one graph run; None is one for each physical core that the process may
            use.
        in_bf16: compute float32 graphs in bfloat16; the backend is then ``openvino-bf16``.

    Raises:
        BackendError: if openvino is not installed, or bfloat16 is asked of a processor without.
    """

    name = "openvino"
    opens_in_parallel = True
    continues_prompts = True
    device = "cpu"

    def __init__(self, *, num_threads: int | None = None, in_bf16: bool = False) -> None:
        try:
            import openvino
            from openvino.frontend.onnx import ConversionExtension
        except ImportError as error:
            raise BackendError(
                "backend openvino is not installed; run: pip install 'feather-edge[openvino]'"
            ) from error
        self._openvino = openvino
        self._core = self._new_core()
        self._decoder_core = self._new_core()
        self._decoder_core.add_extension(ConversionExtension("Attention", _grouped_attention))
        if in_bf16:
            self.name = OPENVINO_BF16
            _require_bf16(self._core.get_property(CPU, "OPTIMIZATION_CAPABILITIES"))
        self._decoder_core.add_extension(ConversionExtension(*PRUNE_OP, _top_k_uniform_gather))
        self.num_threads = num_threads
        self._num_threads = num_threads or default_num_threads()

    def _new_core(self) -> Any:
        core = self._openvino.Core()
        # Versions that do not know it keep more than is needed; they are not in error.
        with contextlib.suppress(Exception):
            core.set_property(CPU, {SHAPES_KEPT: NUM_SHAPES_KEPT})
        return core

    def open(self, file: Path, spec: GraphSpec) -> Graph:
        """See ``Backend.open``."""
        core = self._decoder_core if spec.caches else self._core
        hints = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self.precision_of(spec),
            "INFERENCE_NUM_THREADS": self._num_threads,
        }
        try:
            with _READING:
                model = core.read_model(file)
            in_place = give_new_rows(model, spec)
            compiled = core.compile_model(model, CPU, hints | _rounding(model))
            request = compiled.create_infer_request()
        except Exception as error:  # what the bindings raise has no common class of its own
            raise BackendError(f"openvino cannot load {file}: {_reason(error)}") from error
        graph = _OpenVinoGraph(self._openvino, compiled, request, spec)
        return InPlaceGraph(graph, self) if in_place else graph

    def open_model(self, model: bytes, spec: GraphSpec, *, weights: Path) -> Graph:
        """Open a graph that lies in memory, its weights in files of the folder ``weights``.

        OpenVINO reads external data from the folder of a model's file alone, so for as long as it
        takes there is a copy.

        Raises:
            BackendError: if it cannot be loaded.
        """
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{spec.name}.onnx"
            file.write_bytes(model)
            for name in _external_files(model):
                shutil.copy(weights / name, folder)
            return self.open(file, spec)

    def precision_of(self, spec: GraphSpec) -> str:
        """Return what a graph is computed in, as OpenVINO calls it.

        Raises:
            BackendError: if this backend runs no graphs of its type.
        """
        dtype = spec.inputs[0].dtype
        if self.name == OPENVINO_BF16 and dtype == "float32":
            return "bf16"
        if self.name == OPENVINO_BF16 or dtype not in PRECISIONS:
            raise BackendError(
                f"graph {spec.name} is {dtype}, and {self.name} runs graphs of "
                f"{'float32' if self.name == OPENVINO_BF16 else ' and '.join(PRECISIONS)}; export "
                f"with --precision fp32, or --activations fp32"
            )
        return PRECISIONS[dtype]

    def upload(self, array: NDArray[np.generic]) -> Tensor:
        """See ``Backend.upload``."""
        # OpenVINO shares only what lies in one piece, and what it may write: mapped files are not.
        array = np.ascontiguousarray(array)
        if array.dtype.kind in "iu":  # it knows one of numpy's two types of 64 bits
            array = array.view(array.dtype.name)
        return self._openvino.Tensor(array, shared_memory=array.flags.writeable)

    def download(self, tensor: Tensor) -> NDArray[Any]:
        """See ``Backend.download``."""
        return np.array(tensor.data)


class _OpenVinoGraph(Graph):
    """Outputs are new tensors at each run: a cache lives as long as its request asks for it.

    Attributes:
        request: what OpenVINO runs, and takes times of where it is asked to.
    """

    def __init__(self, openvino: Any, compiled: Any, request: Any, spec: GraphSpec) -> None:
        self.spec = spec
        self._openvino = openvino
        self.request = request
        self._outputs = {
            tensor.name: (
                compiled.output(tensor.name).get_element_type(),
                _smallest(compiled.output(tensor.name).get_partial_shape()),
            )
            for tensor in spec.outputs
        }

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = {
            name: self._openvino.Tensor(kind, self._openvino.Shape(shape))
            for name, (kind, shape) in self._outputs.items()
        }
        try:
            for tensor in self.spec.inputs:
                self.request.set_tensor(tensor.name, inputs[tensor.name])
            for name, tensor in outputs.items():
                self.request.set_tensor(name, tensor)
            self.request.infer()
        except Exception as error:
            raise BackendError(
                f"openvino failed in graph {self.spec.name}: {_reason(error)}"
            ) from error
        return outputs


def _external_files(model: bytes) -> set[str]:
    import onnx

    tensors = onnx.load_model_from_string(model).graph.initializer
    return {
        entry.value
        for tensor in tensors
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _require_bf16(capabilities: list[str]) -> None:
    """Refuse what OpenVINO would grant without a word, and then emulate."""
    if "BF16" not in capabilities:
        raise BackendError(
            f"backend {OPENVINO_BF16} needs a processor that multiplies in bfloat16, and OpenVINO "
            f"lists {', '.join(capabilities)} for this one; choose openvino or onnxruntime"
        )


def _smallest(shape: Any) -> list[int]:
    """Return a shape that a run makes as large as it needs."""
    return [0 if dim.is_dynamic else dim.get_length() for dim in shape]


def _rounding(model: Any) -> dict[str, int]:
    """Return how what enters quantised layers is rounded: in groups like their weights' blocks.

    Layers with smaller blocks than a group stay in float; groups smaller than blocks cost time.
    """
    sizes = [
        node.get_output_shape(0)[1]  # of [blocks, size, out]
        for node in model.get_ops()
        if node.get_type_name() == "Reshape" and _is_codes(node.input_value(0).get_node())
    ]
    return {GROUP_SIZE: min(sizes)} if sizes else {}


def _is_codes(node: Any) -> bool:
    if node.get_type_name() != "Constant":
        return False
    return node.get_element_type().get_type_name() in CODE_TYPES


def _grouped_attention(node: Any) -> list[Any]:
    """Return attention [B, H, S, Dh], the query heads of each key head as rows of one product.

    OpenVINO's own conversion copies keys and values for every query head: at a decode step, most
    of what attention takes.
    """
    from openvino import opset14 as ops

    query, key, value, mask = (node.get_input(index) for index in range(4))
    num_heads, num_kv_heads = (t.get_partial_shape()[1].get_length() for t in (query, key))
    head_dim = query.get_partial_shape()[3].get_length()
    scale = node.get_attribute("scale") if node.has_attribute("scale") else head_dim**-0.5
    dtype = query.get_element_type().to_dtype().type
    ints = functools.partial(ops.constant, dtype=np.int64)

    scaled = ops.multiply(query, ops.constant(dtype(scale)))
    rows = ops.reshape(scaled, ints([0, num_kv_heads, -1, head_dim]), special_zero=True)
    hidden = ops.select(mask, ops.constant(dtype(0)), ops.constant(np.finfo(dtype).min))
    hidden = ops.tile(hidden, ints([1, 1, num_heads // num_kv_heads, 1]))
    weights = ops.softmax(ops.add(ops.matmul(rows, key, False, True), hidden), -1)
    attended = ops.matmul(weights, value, False, False)  # [B, Hkv, G S, Dh]
    heads_first = ops.reshape(attended, ints([0, num_heads, -1, head_dim]), special_zero=True)
    return [heads_first.output(0)]


def _top_k_uniform_gather(node: Any) -> list[Any]:
    """Return the outputs of the op; see ``feather_edge.export.prune_op``."""
    from openvino import opset14 as ops

    scores, priority, num_kept, *followers = (node.get_input(index) for index in range(6))
    count = ops.squeeze(num_kept, ops.constant([0], np.int64))
    best = ops.topk(
        ops.add(scores, priority), count, -1, "max", "value", index_element_type="i64", stable=True
    )
    kept = ops.topk(best.output(1), count, -1, "min", "value", index_element_type="i64").output(0)
    rows = ops.unsqueeze(kept, ops.constant([-1], np.int64))  # [B, K, 1]
    return [kept, *(ops.gather_nd(x, rows, batch_dims=1).output(0) for x in followers)]


def _reason(error: Exception) -> str:
    """Return the last line that says something; the first ones name files of OpenVINO."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
