"""Faults planted into copies of a bundle, each sealed again so that hashes do not show it."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from support.sealing import edit_manifest, seal_files

from feather_edge.engine_record import engine_file, engine_folder

if TYPE_CHECKING:
    from pathlib import Path

    from feather_edge.bundle import Bundle

__all__ = [
    "late_positions", "other_stride", "other_theta", "overflow", "stale_engine", "swapped_weights",
]  # fmt: skip


def _copy(bundle: Bundle, folder: Path) -> Path:
    return shutil.copytree(bundle.path, folder)


def _sealed(folder: Path, *, is_sealed: bool = True) -> Path:
    if is_sealed:
        seal_files(folder)
    return folder


def swapped_weights(
    bundle: Bundle, folder: Path, *, graph: str, words: tuple[str, str], is_sealed: bool = True
) -> Path:
    """Exchange the two dense weights of a graph, of equal size, whose names have these words."""
    copy = _copy(bundle, folder)
    model = ir.load(copy / "onnx" / f"{graph}.onnx")
    first, second = (
        next(
            value.const_value
            for name, value in model.graph.initializers.items()
            if word in name and len(value.const_value.shape) == 2
        )
        for word in words
    )
    assert first.nbytes == second.nbytes
    data = bytearray((copy / "onnx" / first.location).read_bytes())
    size = first.nbytes
    one, other = (slice(each.offset, each.offset + size) for each in (first, second))
    data[one], data[other] = data[other], data[one]
    (copy / "onnx" / first.location).write_bytes(data)
    return _sealed(copy, is_sealed=is_sealed)


def overflow(bundle: Bundle, folder: Path, *, graph: str, word: str) -> Path:
    """Make one float16 weight as large as float16 can hold; what it gives is larger."""
    copy = _copy(bundle, folder)
    model = ir.load(copy / "onnx" / f"{graph}.onnx")
    weight = next(
        value.const_value for name, value in model.graph.initializers.items() if word in name
    )
    values = np.full(weight.nbytes // 2, np.finfo(np.float16).max, np.float16)
    data = bytearray((copy / "onnx" / weight.location).read_bytes())
    data[weight.offset : weight.offset + weight.nbytes] = values.tobytes()
    (copy / "onnx" / weight.location).write_bytes(data)
    return _sealed(copy)


def late_positions(bundle: Bundle, folder: Path, *, graph: str) -> Path:
    """Give each row of a graph's main form the rotary tables of the row before it."""
    copy = _copy(bundle, folder)
    file = copy / "onnx" / f"{graph}.onnx"
    model = ir.load(file)
    for table in [value for value in model.graph.inputs if value.name in ("cos", "sin")]:
        users = [(node, index) for node, index in table.uses()]
        bounds = {name: _constant(model, f"{table.name}_{name}", [value])
                  for name, value in (("zero", 0), ("one", 1), ("last", -1))}  # fmt: skip
        first = ir.node("Slice", [table, bounds["zero"], bounds["one"], bounds["one"]])
        rest = ir.node("Slice", [table, bounds["zero"], bounds["last"], bounds["one"]])
        late = ir.node("Concat", [first.outputs[0], rest.outputs[0]], attributes={"axis": 1})
        for number, node in enumerate((first, rest, late)):
            node.outputs[0].name = f"{table.name}_late_{number}"
        model.graph.insert_before(model.graph[0], [first, rest, late])
        for user, index in users:
            user.replace_input_with(index, late.outputs[0])
    ir.save(model, file)
    return _sealed(copy)


def _constant(model: ir.Model, name: str, values: list[int]) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(np.array(values, np.int64), name=name))
    value.type, value.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([len(values)])
    model.graph.initializers[name] = value
    return value


def other_theta(bundle: Bundle, folder: Path) -> Path:
    """Turn positions into other angles."""
    return _edited(bundle, folder, "rotary", "theta", bundle.manifest.rotary.theta * 2)


def other_stride(bundle: Bundle, folder: Path, stride: int) -> Path:
    """Lay the grid of kept tokens with another stride."""
    return _edited(bundle, folder, "recipe", "stride", stride)


def _edited(bundle: Bundle, folder: Path, part: str, key: str, value: Any) -> Path:
    copy = _copy(bundle, folder)
    edit_manifest(copy, lambda document: document[part].__setitem__(key, value))
    return copy


def stale_engine(bundle: Bundle, target: str, graph: str) -> None:
    """Make an engine, in place, one of other files than the bundle has."""
    record = engine_file(engine_folder(bundle.path, target), graph).with_suffix(".json")
    document = json.loads(record.read_text())
    document["graph_sha256"] = "0" * 64
    record.write_text(json.dumps(document))
