from __future__ import annotations

import numpy as np
import pytest

from feather_edge.export.builder import GraphBuilder
from feather_edge.export.dialects import DIALECTS
from feather_edge.export.precision import GraphPrecision
from feather_edge.graphs import GraphSpec

FLOAT32 = GraphPrecision(dtype="float32")


@pytest.fixture
def builder() -> GraphBuilder:
    spec = GraphSpec(name="sums", forms=(), inputs=(), outputs=())
    return GraphBuilder(spec, None, precision=FLOAT32, dialect=DIALECTS[23])


def test_a_constant_is_shared_by_name(builder: GraphBuilder) -> None:
    assert builder.scalar("half", 0.5) is builder.scalar("half", 0.5)
    assert builder.ints(1, -1) is builder.ints(1, -1)
    assert builder.ints(1, -1) is not builder.ints(1, 1)


def test_a_name_stands_for_one_constant(builder: GraphBuilder) -> None:
    builder.scalar("slope", 0.5)

    with pytest.raises(ValueError, match="graph sums has another constant 'slope' than 0.25"):
        builder.scalar("slope", 0.25)
    with pytest.raises(ValueError, match="another constant 'slope'"):
        builder.constant("slope", np.zeros(2, np.float32))


def test_names_are_paths(builder: GraphBuilder) -> None:
    with builder.scope("layers.3"), builder.scope("mlp"):
        assert builder.path("gate") == "layers.3/mlp/gate"
    assert builder.path("gate") == "gate"


@pytest.mark.parametrize("opset", DIALECTS)
def test_both_gelus_fit_in_one_graph(opset: int) -> None:
    """SigLIP's tower takes the tanh form and its projector the exact one."""
    import onnx_ir as ir
    import onnxruntime
    import torch

    from feather_edge.export.operators import activation
    from feather_edge.graphs import TensorSpec

    names = ("silu", "gelu", "gelu_pytorch_tanh", "quick_gelu")
    rows = ("rows",)
    spec = GraphSpec(
        name="gelus",
        forms=(),
        inputs=(TensorSpec(name="x", dtype="float32", shape=rows),),
        outputs=tuple(TensorSpec(name=f"{n}_y", dtype="float32", shape=rows) for n in names),
    )
    g = GraphBuilder(spec, None, precision=FLOAT32, dialect=DIALECTS[opset])
    model = g.model({f"{n}_y": activation(g, g.inputs["x"], n, name=n) for n in names})
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.linspace(-6, 6, 101, dtype=np.float32)

    outputs = session.run(None, {"x": x})

    wide = torch.tensor(x)
    expected = (
        torch.nn.functional.silu(wide),
        torch.nn.functional.gelu(wide),
        torch.nn.functional.gelu(wide, approximate="tanh"),
        wide * torch.sigmoid(1.702 * wide),
    )
    for output, value in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, value.numpy(), atol=1e-6)
