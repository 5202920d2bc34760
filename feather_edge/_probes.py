"""Small trials of one library each, run as ``python -m feather_edge._probes NAME``.

A trial runs in a process of its own: a native library that crashes on this machine must not take
its caller with it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from feather_edge.errors import FeatherEdgeError
from feather_edge.runtime.backend_names import OPENVINO_BF16

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "PROBES",
    "import_reference",
    "load_bundle",
    "load_engines",
    "one_node_model",
    "require_openvino_bf16",
    "run_onnxruntime",
    "run_openvino",
    "run_tensorrt",
]


def one_node_model() -> bytes:
    """Return an ONNX model of one `Identity` node in the newest opset that bundles use."""
    from onnx import TensorProto, helper

    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "probe", tensors[:1], tensors[1:]
    )
    opset = helper.make_opsetid("", 23)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=11)
    return bytes(model.SerializeToString())


def run_onnxruntime(provider: str) -> None:
    """Run the one-node model on one execution provider of ONNX Runtime.

    Raises:
        RuntimeError: if another provider took its place or the answer is wrong.
    """
    import numpy as np
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        raise RuntimeError(f"this build has no {provider}")
    session = onnxruntime.InferenceSession(one_node_model(), providers=[provider])
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"{provider} could not be started")
    x = np.array([2.5], np.float32)
    if session.run(None, {"x": x})[0] != x:
        raise RuntimeError(f"{provider} computed a wrong result")


def run_openvino() -> None:
    """Run the one-node model with OpenVINO on the CPU.

    Raises:
        RuntimeError: if the answer is wrong.
    """
    import numpy as np
    import openvino

    x = np.array([2.5], np.float32)
    compiled = openvino.Core().compile_model(openvino.Core().read_model(one_node_model()), "CPU")
    if compiled({"x": x})["y"] != x:
        raise RuntimeError("openvino computed a wrong result")


def require_openvino_bf16() -> None:
    """Ask OpenVINO whether this processor multiplies in bfloat16.

    Raises:
        BackendError: if it does not.
    """
    from feather_edge.runtime.backends.openvino import OpenVinoBackend

    OpenVinoBackend(in_bf16=True)


def run_tensorrt(backend: str) -> None:
    """Build an engine of one `Identity` layer with TensorRT or TensorRT-RTX and run it.

    Raises:
        RuntimeError: if it does not build, or the answer is wrong.
        BackendError: if the library or a GPU is missing.
    """
    import numpy as np

    from feather_edge.runtime.backends._cuda import Driver
    from feather_edge.runtime.backends._device_memory import DeviceMemory, DeviceTensor
    from feather_edge.runtime.backends._tensorrt_library import TensorRTLibrary

    library, memory = TensorRTLibrary(backend), DeviceMemory(Driver())
    plan = _identity_plan(library.module, library.logger)
    if plan is None:
        raise RuntimeError(f"{backend} {library.version} builds no engine{library.last_error}")
    engine = library.deserialise(plan, "the engine it built")
    scratch = memory.acquire_for(engine.device_memory_size_v2)
    context = library.create_context(engine, 0, memory.stream)
    context.set_device_memory(scratch.address, scratch.num_bytes)
    x = DeviceTensor.of_array(memory, np.array([2.5], np.float32))
    y = DeviceTensor(memory, shape=x.shape, dtype=x.dtype)
    context.set_input_shape("x", x.shape)
    context.infer_shapes()
    for name, tensor in (("x", x), ("y", y)):
        context.set_tensor_address(name, tensor.device_address())
    if not context.execute_async_v3(memory.stream) or y.values() != x.values():
        raise RuntimeError(f"{backend} computed a wrong result{library.last_error}")


def _identity_plan(trt: Any, logger: Any) -> Any:
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    x = network.add_input("x", trt.DataType.FLOAT, (1,))
    y = network.add_identity(x).get_output(0)
    y.name = "y"
    network.mark_output(y)
    return builder.build_serialized_network(network, builder.create_builder_config())


def import_reference() -> None:
    """Import what parity checks compare with."""
    import torch
    import transformers

    if not hasattr(transformers, "LlavaForConditionalGeneration"):
        raise RuntimeError(f"transformers {transformers.__version__} with torch "
                           f"{torch.__version__} has no LLaVA")  # fmt: skip


def load_bundle(bundle: str) -> None:
    """Open a bundle's graphs in ONNX Runtime.

    Raises:
        FeatherEdgeError: if it is damaged, or a graph does not load.
    """
    from feather_edge.runtime.session import Session

    Session.open(bundle, backend="onnxruntime").close()


def load_engines(bundle: str, backend: str, target: str) -> None:
    """Open the engines that a bundle has for a target.

    Raises:
        FeatherEdgeError: naming what differs from what they were built for.
    """
    from feather_edge.runtime.session import Session

    Session.open(bundle, backend=backend, target=target).close()


PROBES: dict[str, Callable[..., None]] = {
    "onnxruntime-cpu": lambda: run_onnxruntime("CPUExecutionProvider"),
    "onnxruntime-cuda": lambda: run_onnxruntime("CUDAExecutionProvider"),
    "openvino": run_openvino,
    OPENVINO_BF16: require_openvino_bf16,
    "tensorrt": lambda: run_tensorrt("tensorrt"),
    "tensorrt-rtx": lambda: run_tensorrt("tensorrt-rtx"),
    "reference": import_reference,
    "bundle": load_bundle,
    "engines": load_engines,
}


if __name__ == "__main__":
    try:
        PROBES[sys.argv[1]](*sys.argv[2:])
    except FeatherEdgeError as error:
        sys.exit(str(error))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}".splitlines()[0])
