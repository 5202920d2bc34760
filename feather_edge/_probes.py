"""Small trials of one library each, run as ``python -m feather_edge._probes NAME``.

A trial runs in a process of its own: a native library that crashes on this machine must not take
its caller with it.
"""

from __future__ import annotations

import sys

__all__ = ["PROBES", "import_reference", "one_node_model", "run_onnxruntime"]


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


def import_reference() -> None:
    """Import what parity checks compare with."""
    import torch
    import transformers

    if not hasattr(transformers, "LlavaForConditionalGeneration"):
        raise RuntimeError(f"transformers {transformers.__version__} with torch "
                           f"{torch.__version__} has no LLaVA")  # fmt: skip


PROBES = {
    "onnxruntime-cpu": lambda: run_onnxruntime("CPUExecutionProvider"),
    "onnxruntime-cuda": lambda: run_onnxruntime("CUDAExecutionProvider"),
    "reference": import_reference,
}


if __name__ == "__main__":
    try:
        PROBES[sys.argv[1]]()
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}".splitlines()[0])
