"""A copy of the last segment's graph that gives the logits of every position, not of the last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import onnx_ir as ir

if TYPE_CHECKING:
    from pathlib import Path

    from feather_edge.graphs import GraphSpec

LAST_POSITION = "last_position"


def with_all_positions(file: Path, spec: GraphSpec) -> tuple[bytes, GraphSpec]:
    """Return bytes and contract of a graph whose ``logits`` are [S, 1, V], for a batch of one.

    Norm and head take rows as they come, so positions stand where the batch was. The weights stay
    where they are; the bytes refer to them by the names of their files.
    """
    model = ir.load(file)
    graph = model.graph
    (last,) = (node for node in graph if node.name == LAST_POSITION)
    axes = ir.Value(name="batch_axis", const_value=ir.tensor([0], name="batch_axis"))
    graph.register_initializer(axes)
    rows = ir.node("Squeeze", [last.inputs[0], axes], name="positions")
    rows.outputs[0].name = "positions/output"
    graph.insert_after(last, rows)
    ir.convenience.replace_all_uses_with(last.outputs, rows.outputs)
    graph.remove(last, safe=True)
    outputs = []
    for tensor in spec.outputs:
        shape = ("sequence", *tensor.shape[1:]) if tensor.name == "logits" else tensor.shape
        outputs.append(msgspec.structs.replace(tensor, shape=shape))
    (logits,) = (value for value in graph.outputs if value.name == "logits")
    logits.shape = ir.Shape(next(t.shape for t in outputs if t.name == "logits"))
    return ir.to_proto(model).SerializeToString(), msgspec.structs.replace(
        spec, outputs=tuple(outputs)
    )
