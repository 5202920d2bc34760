"""What is called on TensorRT's objects at run time exists in every version that is recorded.

Names of the module itself, ``trt.X``, are held against the same listings in
``tests/unit/engines/test_tensorrt_api.py``.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from support.tensorrt_api import Gate, listings, parse_version

import feather_edge

PACKAGE = Path(feather_edge.__file__).parent
FILES = (
    "_probes.py",
    "runtime/backends/_engine_graph.py",
    "runtime/backends/_tensorrt_library.py",
    "runtime/backends/tensorrt.py",
)
CLASSES = {
    "engine": "ICudaEngine", "context": "IExecutionContext", "_runtime": "Runtime",
    "builder": "Builder", "network": "INetworkDefinition",
}  # fmt: skip


def names_called(source: str) -> set[str]:
    """Return ``Class.name`` for each attribute of a variable that holds an object of a class."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            holder = node.value
            name = getattr(holder, "attr", None) or getattr(holder, "id", None)
            if name in CLASSES:
                found.add(f"{CLASSES[name]}.{node.attr}")
    return found


# Called for caches in place alone, which older versions cannot have.
GATES = {"ICudaEngine.get_aliased_input_tensor": Gate(since=(10, 15))}
USED = set().union(*(names_called((PACKAGE / file).read_text("utf-8")) for file in FILES))


def test_the_search_finds_what_is_called() -> None:
    assert {
        "ICudaEngine.device_memory_size_v2", "IExecutionContext.execute_async_v3",
        "Runtime.deserialize_cuda_engine", "Builder.build_serialized_network",
    } <= USED  # fmt: skip


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
@pytest.mark.parametrize("name", sorted(USED))
def test_every_version_has_it(module: str, name: str) -> None:
    gate = GATES.get(name, Gate()) if module == "tensorrt" else Gate()
    for version, names in listings(module).items():
        should = gate.admits(parse_version(version))
        assert (name in names) == should, f"{module} {version}: {name} in it is {not should}"
