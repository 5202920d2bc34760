"""The static check of the opset-18 form: what TensorRT 10.3's parser would refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir
import pytest

from feather_edge.engines.static_check import check_portable, portable_operators
from feather_edge.errors import BuildError
from feather_edge.export.prune_op import prune_function
from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from support.bundles import BundleFactory


def model_of(
    *nodes: ir.Node,
    dtype: ir.DataType = ir.DataType.FLOAT,
    opset: int = 18,
    ir_version: int = 10,
    functions: tuple[ir.Function, ...] = (),
) -> ir.Model:
    x = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape([4]))
    graph = ir.Graph([x], [], nodes=nodes, opset_imports={"": opset}, name="g")
    return ir.Model(graph, ir_version=ir_version, functions=functions)


def node(op_type: str, domain: str = "", **attributes: int) -> ir.Node:
    return ir.node(op_type, [], attributes=attributes, domain=domain, name="layers.0/it")


def function_of(*nodes: ir.Node, name: str = "Mine", opset: int = 18) -> ir.Function:
    graph = ir.Graph([], [], nodes=nodes, opset_imports={"": opset}, name=name)
    return ir.Function("feather", name, graph=graph, attributes=[])


def test_the_list() -> None:
    operators = portable_operators()
    assert len(operators) == 150
    assert {"TopK", "GatherND", "Softmax", "Split", "ReduceMean"} <= operators
    assert not {"Attention", "RMSNormalization", "RotaryEmbedding", "BitShift"} & operators


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_exported_form_passes_and_the_newest_does_not(
    bundles: BundleFactory, precision: str
) -> None:
    bundle = bundles(recipe=ExportRecipe(precision=precision)).bundle  # type: ignore[arg-type]
    for spec in bundle.manifest.graphs:
        newest, oldest = (ir.load(bundle.path / form.file) for form in spec.forms)
        check_portable(oldest, name=spec.name)
        with pytest.raises(BuildError, match="IR version"):
            check_portable(newest, name=spec.name)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (model_of(ir_version=11), "IR version is 11; at most 10"),
        (model_of(opset=21), "it is of opset 21; at most 20"),
        (model_of(node("Attention")), "node 'layers.0/it' is Attention, which its parser"),
        (model_of(node("Mystery", "other")), "other::Mystery, which has no function"),
        (model_of(dtype=ir.DataType.BFLOAT16), "tensor 'x' is bfloat16; allowed are float, "),
        (model_of(dtype=ir.DataType.DOUBLE), "tensor 'x' is double"),
        (model_of(node("Cast", to=int(ir.DataType.FLOAT8E4M3FN))), "attribute to of node"),
        (
            model_of(functions=(function_of(node("RMSNormalization")),)),
            "is RMSNormalization, which its parser",
        ),
        (model_of(functions=(function_of(opset=23),)), "function feather::Mine is of opset 23"),
        (
            model_of(functions=(function_of(name="Gelu"),)),
            "function feather::Gelu has the name of a standard operator",
        ),
    ],
)
def test_refused(model: ir.Model, text: str) -> None:
    with pytest.raises(BuildError) as error:
        check_portable(model, name="decoder_0")
    assert str(error.value).startswith("graph decoder_0 is not for TensorRT 10.3: ")
    assert text in str(error.value)


def test_a_body_within_an_if_is_read_too() -> None:
    branch = ir.Graph([], [], nodes=[node("Attention")], opset_imports={"": 18}, name="branch")
    choice = ir.node("If", [], attributes={"then_branch": branch, "else_branch": branch})
    with pytest.raises(BuildError, match="Attention"):
        check_portable(model_of(choice), name="g")


def test_the_prune_op_is_portable() -> None:
    function = prune_function(opset=18)
    check_portable(model_of(node(function.name, function.domain), functions=(function,)), name="g")
