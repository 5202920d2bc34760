"""Reading a builder's log. The lines are TensorRT-RTX 1.7's own."""

from __future__ import annotations

import pytest

from feather_edge.engines.diagnosis import find_problem, last_lines

HARMLESS = """\
[W] 'colored' module is not installed, will not use colors when logging.
[W] ModelImporter.cpp:1071: Make sure input num_kept has Int64 binding.
[W] [RemoveDeadLayers] Input Tensor num_kept is unused or used only at compile-time, but is not
[I] Building engine with configuration:
    Flags                  | [TF32, STRONGLY_TYPED]
[I] Finished engine building in 4.662 seconds
"""
TOP_K = (
    "[E] IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (ITopKLayer "
    "prune/top: K exceeds the maximum value allowed (3840). In processCheck)"
)
MIXED = """\
[E] ITensor::getDimensions: Error Code 4: API Usage Error (layers.0/add: ElementWiseOperation SUM \
must have same input types. But they are of types Float and Half.)
[E] [checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (cudaError 35: CUDA driver)
[E] In node 0 with name: layers.0/add and operator: Add (parseNode): INVALID_NODE: Invalid Node
[!] Could not parse ONNX correctly
"""
UNKNOWN = (
    "[E] In node 7 with name: layers.1/x and operator: Mystery (checkFallbackPluginImporter): "
    'INVALID_NODE: creator && "Plugin not found, are the plugin name, version, and namespace?"'
)
FP8 = (
    "[E] Cannot compile for target(s) sm86, because the model contains HW-specific datatypes: fp8"
)
TURING = (
    "[E] Cannot compile operation 'layers.0/dot' for Turing (SM75): FP32 GEMM is not supported."
)
STATIC = """\
[E] ITensor::getDimensions: Error Code 3: API Usage Error (layers.0/key: The KV cache tensor must \
have a static sequence length dimension. In validate at kVCacheUpdateLayer.cpp:129)
[E] In node 6 with name: layers.0/key and operator: TensorScatter (parseNode): INVALID_NODE
[!] Could not parse ONNX correctly
"""


@pytest.mark.parametrize("log", ["", HARMLESS])
def test_a_log_without_problems(log: str) -> None:
    assert find_problem(log) is None


@pytest.mark.parametrize(
    ("line", "node", "remedy"),
    [
        ("[W] Unused Input: lens", None, "export the bundle again"),
        ("[W] [RemoveDeadLayers] Input Tensor lens is unused or used only at", None, "no effect"),
        ("[W] Profile kMIN values are not self-consistent. node_of_y", None, "--dry-run"),
        ("[W] Attribute x is out of range. Clamping to: 7", None, "--precision fp32"),
        (TOP_K, "prune/top", "--max-visual-tokens"),
        (MIXED, "layers.0/add", "strongly typed"),
        (UNKNOWN, "layers.1/x", "--plugin LIB"),
        (FP8, None, "--compute-capabilities"),
        (TURING, "layers.0/dot", "--precision fp16"),
        ("[!] Compute capability 8.7 (SM87) not supported by this", None, "on the device itself"),
        ("[E] Attention operation was not supported by a dedicated kernel.", None, "--opset 18"),
        (STATIC, "layers.0/key", "--opset 23"),
        ("[E] Requested amount of GPU memory: OutOfMemory", None, "--pool-limit"),
        ("[E] Something that nobody has seen", None, "the log has the rest"),
    ],
)
def test_a_problem_has_a_node_where_known_and_a_remedy(
    line: str, node: str | None, remedy: str
) -> None:
    problem = find_problem(HARMLESS + line)
    assert problem is not None
    assert problem.node == node
    assert remedy in problem.remedy


def test_the_cause_beats_what_follows_from_it() -> None:
    problem = find_problem("[!] Invalid Engine. Please ensure\n" + MIXED)
    assert problem is not None
    assert "must have same input types" in problem.message


def test_the_end_of_a_log() -> None:
    assert last_lines("a\n\nb\nc\n", num_lines=2) == "b | c"
    assert last_lines("") == "the log is empty"
