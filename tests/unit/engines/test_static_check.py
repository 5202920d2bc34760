"""The static check of each form: what the parser that it is for would refuse, or misread."""

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
def test_every_exported_form_passes_and_is_too_new_for_older_parsers(
    bundles: BundleFactory, precision: str
) -> None:
    bundle = bundles(recipe=ExportRecipe(precision=precision)).bundle  # type: ignore[arg-type]
    for spec in bundle.manifest.graphs:
        models = {form.opset: ir.load(bundle.path / form.file) for form in spec.forms}
        for opset, model in models.items():
            check_portable(model, name=spec.name, opset=opset)
        with pytest.raises(BuildError, match="TensorRT 10.3: its IR version is 11"):
            check_portable(models[23], name=spec.name, opset=18)
        with pytest.raises(BuildError, match="TensorRT 10.15: it is of opset 24; at most 23"):
            check_portable(models[24], name=spec.name, opset=23)


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
        check_portable(model, name="decoder_0", opset=18)
    assert str(error.value).startswith("graph decoder_0 is not for TensorRT 10.3: ")
    assert text in str(error.value)


def test_a_body_within_an_if_is_read_too() -> None:
    branch = ir.Graph([], [], nodes=[node("Attention")], opset_imports={"": 18}, name="branch")
    choice = ir.node("If", [], attributes={"then_branch": branch, "else_branch": branch})
    with pytest.raises(BuildError, match="Attention"):
        check_portable(model_of(choice), name="g", opset=18)


def test_the_prune_op_is_portable() -> None:
    function = prune_function(opset=18)
    model = model_of(node(function.name, function.domain), functions=(function,))
    check_portable(model, name="g", opset=18)


def value(name: str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT16), shape=ir.Shape([1]))


def cache_model(*, is_input: bool = True, is_output: bool = True, **attributes: str) -> ir.Model:
    past, new, start = value("past"), value("new"), value("start")
    update = ir.node("TensorScatter", [past, new, start], attributes=attributes, name="update")
    graph = ir.Graph(
        [past, new, start] if is_input else [new, start],
        list(update.outputs) if is_output else [],
        nodes=[update],
        opset_imports={"": 24},
        name="g",
    )
    return ir.Model(graph, ir_version=11)


def as_opset_23(model: ir.Model) -> ir.Model:
    model.graph.opset_imports[""] = 23
    return model


def test_caches_in_place() -> None:
    check_portable(cache_model(), name="g", opset=24)
    for wrong in (cache_model(is_input=False), cache_model(is_output=False)):
        with pytest.raises(BuildError, match="is not an input and an output of the graph"):
            check_portable(wrong, name="g", opset=24)
    with pytest.raises(BuildError, match="in mode circular; only linear is read"):
        check_portable(cache_model(mode="circular"), name="g", opset=24)
    with pytest.raises(BuildError, match="'update' is TensorScatter, which its parser does not"):
        check_portable(as_opset_23(cache_model()), name="g", opset=23)


def test_lengths_of_keys_would_be_dropped() -> None:
    inputs = [value(name) for name in "qkv"] + [None, None, None, value("lengths")]
    attention = ir.node("Attention", inputs, name="attention")
    with pytest.raises(BuildError, match="nonpad_kv_seqlen, which its parser drops; use a mask"):
        check_portable(model_of(attention, opset=24, ir_version=11), name="g", opset=24)
