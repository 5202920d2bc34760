"""Engines for the fake TensorRT, and the little of its builder that a trial needs."""

from __future__ import annotations

import enum
import json
import tempfile
import types
from pathlib import Path
from typing import Any

from feather_edge._probes import one_node_model

__all__ = ["MAGIC", "Builder", "DataType", "fake_engine"]

MAGIC = "fake engine"


class DataType(enum.Enum):
    """TensorRT's types, valued as ONNX Runtime names them."""

    FLOAT = "tensor(float)"
    HALF = "tensor(float16)"
    INT64 = "tensor(int64)"
    BOOL = "tensor(bool)"
    INT32 = "tensor(int32)"


def fake_engine(
    model: Path, profiles: list[dict[str, Any]], *, version: str, scratch_bytes: int = 4096
) -> bytes:
    """Return the bytes of an engine for ``model``; profiles map inputs to (min, opt, max)."""
    document = {
        "magic": MAGIC, "model": str(model), "profiles": profiles, "version": version,
        "scratch_bytes": scratch_bytes,
    }  # fmt: skip
    return json.dumps(document).encode()


class Builder:
    """Builds the one network that a trial of TensorRT needs: an Identity of one float."""

    def __init__(self, version: str, logger: Any) -> None:
        assert logger.is_initialised
        self._version = version

    def create_network(self, flags: int) -> _Network:
        assert flags == 1 << 1
        return _Network()

    def create_builder_config(self) -> object:
        return object()

    def build_serialized_network(self, network: _Network, config: object) -> bytes:
        with tempfile.NamedTemporaryFile(suffix=".onnx", delete=False) as file:
            file.write(one_node_model())
        assert [each.name for each in network.outputs] == ["y"]
        return fake_engine(Path(file.name), [{"x": ((1,), (1,), (1,))}], version=self._version)


class _Network:
    def __init__(self) -> None:
        self.outputs: list[Any] = []

    def add_input(self, name: str, dtype: DataType, shape: tuple[int, ...]) -> Any:
        assert (name, dtype, shape) == ("x", DataType.FLOAT, (1,))
        return types.SimpleNamespace(name=name)

    def add_identity(self, tensor: Any) -> Any:
        output = types.SimpleNamespace(name=f"{tensor.name} again")
        return types.SimpleNamespace(get_output=[output].__getitem__)

    def mark_output(self, tensor: Any) -> None:
        self.outputs.append(tensor)
