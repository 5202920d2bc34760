"""What backends are called, without loading any."""

from __future__ import annotations

OPENVINO_BF16 = "openvino-bf16"
"""OpenVINO that computes float32 graphs in bfloat16, on processors that multiply in it."""

GRAPH_BACKENDS = ("auto", "onnxruntime", "openvino", OPENVINO_BF16)
"""They run the ONNX graphs of a bundle; ``auto`` is the one measured fastest here, else
onnxruntime."""

ENGINE_BACKENDS = ("tensorrt", "tensorrt-rtx")
"""They run the engines that ``build-engine`` made of the graphs for a target."""

BACKEND_NAMES = (*GRAPH_BACKENDS, *ENGINE_BACKENDS)
