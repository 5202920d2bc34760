"""The custom op ``feather::TopKUniformGather``, as a function of standard operators.

rows = ascending(top-k(scores + priority, num_kept)); every tensor that follows the rows is
gathered by them. ONNX Runtime and OpenVINO run the body, TensorRT inlines it, and TensorRT with
our plugin registered takes the plugin, which it finds by the two ``plugin_*`` attributes. The
numpy reference is ``feather_edge.pruning.selection.top_k_uniform_gather``.

num_kept gives the shapes of the outputs, so TensorRT must have its value on the host. For TopK it
sees to that itself; for a plugin the node has to say which inputs are such, with
``tensorrt_plugin_shape_input_indices``.

The uniform grid, text rows, quotas of a single image and protected regions all arrive through
``priority``, so the op stays this small. ONNX defines TopK's ties: the lowest index first.

=============== ============ =====================================
``scores``      [B, S]       float32
``priority``    [B, S]       float32
``num_kept``    [1]          int64, K
``hidden``      [B, S, D]    any float
``cos``         [B, S, Dh/2] any float
``sin``         [B, S, Dh/2] any float
``kept``        [B, K]       int64, ascending
``kept_hidden`` [B, K, D]    and ``kept_cos``, ``kept_sin`` likewise
=============== ============ =====================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from feather_edge.export.builder import GraphBuilder

DOMAIN = "feather"
NAME = "TopKUniformGather"
VERSION = "1"
PLUGIN_ATTRIBUTES: dict[str, str | list[int]] = {
    "plugin_namespace": DOMAIN,
    "plugin_version": VERSION,
    "tensorrt_plugin_shape_input_indices": [2],  # num_kept
}


def top_k_uniform_gather(
    g: GraphBuilder, scores: ir.Value, hidden: ir.Value
) -> dict[str, ir.Value]:
    """Append the op to a segment and return the segment's ``kept_*`` outputs and ``scores``."""
    g.function(prune_function(opset=g.dialect.opset))
    kept, kept_hidden, kept_cos, kept_sin = g.ops(
        NAME,
        scores,
        g.inputs["prune_priority"],
        g.inputs["num_kept"],
        hidden,
        g.inputs["cos"],
        g.inputs["sin"],
        name="prune/top_k_uniform_gather",
        outputs=["kept", "kept_hidden", "kept_cos", "kept_sin"],
        domain=DOMAIN,
        **PLUGIN_ATTRIBUTES,
    )
    return {
        "kept_hidden_states": kept_hidden,
        "kept_cos": kept_cos,
        "kept_sin": kept_sin,
        "kept_indices": kept,
        "scores": scores,
    }


def prune_function(*, opset: int) -> ir.Function:
    """Return the op's body, in operators that every opset from 13 on has."""
    names = ("scores", "priority", "num_kept", "hidden", "cos", "sin")
    inputs = {name: ir.Value(name=name) for name in names}
    nodes: list[ir.Node] = []

    def op(
        op_type: str, *args: ir.Value, outputs: tuple[str, ...], **attributes: int | list[int]
    ) -> tuple[ir.Value, ...]:
        values = tuple(ir.Value(name=name) for name in outputs)
        nodes.append(
            ir.node(op_type, args, attributes=attributes, outputs=values, name=outputs[0])
        )
        return values

    (ranked,) = op("Add", inputs["scores"], inputs["priority"], outputs=("ranked",))
    _, best = op("TopK", ranked, inputs["num_kept"], outputs=("best_scores", "best"))
    # A second TopK, smallest first, is the portable way to sort.
    kept, _ = op("TopK", best, inputs["num_kept"], outputs=("kept", "kept_places"), largest=0)
    (last_axis,) = op("Constant", outputs=("last_axis",), value_ints=[-1])
    (rows,) = op("Unsqueeze", kept, last_axis, outputs=("rows",))  # [B, K, 1]
    gathered = [
        op("GatherND", inputs[name], rows, outputs=(f"kept_{name}",), batch_dims=1)[0]
        for name in ("hidden", "cos", "sin")
    ]
    graph = ir.Graph(
        list(inputs.values()),
        [kept, *gathered],
        nodes=nodes,
        opset_imports={"": opset},
        name=NAME,
    )
    attributes = ir.convenience.convert_attributes(PLUGIN_ATTRIBUTES)
    return ir.Function(DOMAIN, NAME, graph=graph, attributes=attributes)
