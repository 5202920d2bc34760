"""Writing ONNX nodes by hand, with the names a reader of the graph expects.

A ``GraphBuilder`` collects nodes and weights of one graph. Node names are paths
(``layers.3/self_attn/qkv_proj``), so Netron shows where in the model a node belongs. Weights are
lazy: a tensor is read, cast and transposed only while it is being written, so peak memory stays
near the largest tensor.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from feather_edge.export.dialects import Dialect
    from feather_edge.export.precision import GraphPrecision
    from feather_edge.export.weights import Weights
    from feather_edge.graphs import DType, GraphSpec

DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "int4": ir.DataType.INT4,
    "int8": ir.DataType.INT8,
    "int64": ir.DataType.INT64,
    "bool": ir.DataType.BOOL,
}


WeightType: TypeAlias = "DType | Literal['int4', 'int8']"


class GraphBuilder:
    """Collects the nodes of one graph; ``model()`` closes it against its contract.

    Attributes:
        is_plan: the graph is for its sizes alone, so what is costly to make may be left out.
    """

    def __init__(
        self,
        spec: GraphSpec,
        weights: Weights,
        *,
        precision: GraphPrecision,
        dialect: Dialect,
        is_plan: bool = False,
    ) -> None:
        self.spec = spec
        self.precision = precision
        self.dtype: DType = precision.dtype
        self.dialect = dialect
        self.weights = weights
        self.is_plan = is_plan
        self._scope: list[str] = []
        self._nodes: list[ir.Node] = []
        self._initializers: dict[str, ir.Value] = {}
        self._functions: list[ir.Function] = []
        self._extra_outputs: list[ir.Value] = []
        self._shared: dict[str, ir.Value] = {}
        self.inputs = {
            tensor.name: ir.Value(
                name=tensor.name,
                type=ir.TensorType(DTYPES[tensor.dtype]),
                shape=ir.Shape(tensor.shape),
            )
            for tensor in spec.inputs
        }

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of nodes written inside the block."""
        self._scope.append(name)
        try:
            yield
        finally:
            self._scope.pop()

    def ops(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        name: str,
        outputs: Sequence[str],
        domain: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Append a node with several outputs, called ``outputs`` within its own path."""
        path = self.path(name)
        node = ir.node(
            op_type,
            inputs,
            attributes=attributes,
            domain=domain,
            outputs=[ir.Value(name=f"{path}/{output}") for output in outputs],
            name=path,
        )
        self._nodes.append(node)
        return node.outputs

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        name: str,
        **attributes: Any,
    ) -> ir.Value:
        """Append a node with one output and return it."""
        return self.ops(op_type, *inputs, name=name, outputs=["output"], **attributes)[0]

    def cast(self, x: ir.Value, dtype: DType, *, name: str) -> ir.Value:
        """Cast; nothing is written when the whole graph has that type already."""
        if dtype == "float32" and self.dtype == "float32":
            return x
        return self.op("Cast", x, name=name, to=int(DTYPES[dtype]))

    def once(self, key: str, write: Callable[[], ir.Value]) -> ir.Value:
        """Return what ``write`` gives, outside of all scopes; layers with one key share it."""
        if key not in self._shared:
            scope, self._scope = self._scope, []
            self._shared[key] = write()
            self._scope = scope
        return self._shared[key]

    def unsqueeze_once(self, x: ir.Value, axis: int) -> ir.Value:
        """Insert an axis; layers that ask for the same one share the node."""
        name = f"{str(x.name).removesuffix('/output')}_unsqueezed"
        return self.once(
            f"{name} {axis}", lambda: self.op("Unsqueeze", x, self.ints(axis), name=name)
        )

    def constant(self, name: str, value: NDArray[np.generic]) -> ir.Value:
        """Return a small constant, shared by every node that asks for it by ``name``.

        Raises:
            ValueError: if ``name`` is another constant already: a fault of the caller.
        """
        if name not in self._initializers:
            self._add_initializer(name, ir.tensor(value, name=name))
        shared = self._initializers[name]
        if shared.const_value is None or not np.array_equal(shared.const_value.numpy(), value):
            raise ValueError(f"graph {self.spec.name} has another constant {name!r} than {value}")
        return shared

    def path(self, name: str) -> str:
        """Return ``name`` as a path within the current scopes."""
        return "/".join([*self._scope, name])

    def scalar(self, name: str, value: float) -> ir.Value:
        """Return a scalar constant of the graph's type."""
        return self.constant(name, np.array(value, np.dtype(self.dtype)))

    def ints(self, *values: int) -> ir.Value:
        """Return a 1-D int64 constant."""
        name = "ints_" + "_".join(str(value).replace("-", "minus_") for value in values)
        return self.constant(name, np.array(values, np.int64))

    def weight(
        self,
        *sources: str,
        shape: tuple[int, ...],
        first_dims: Sequence[int] | None = None,
        name: str | None = None,
        transpose: bool = False,
        dtype: DType | None = None,
        offset: float = 0.0,
    ) -> ir.Value:
        """Return a weight: checkpoint tensors joined along their first axis, then transposed.

        Args:
            sources: canonical tensor names (see ``Weights``).
            shape: expected shape of what is joined.
            first_dims: how its first dimension falls to the sources, when there are several.
            name: name in the graph; defaults to the first source's.
            transpose: store ``[out, in]`` as ``[in, out]``, which MatMul wants.
            dtype: defaults to the graph's.
            offset: added to every element, in float32.
        """
        views = [
            self.weights.tensor(source, shape=(first, *shape[1:]))
            for source, first in zip(sources, first_dims or shape[:1], strict=True)
        ]
        target = np.dtype(dtype or self.dtype)
        stored = shape[::-1] if transpose else shape
        graph_name = name or sources[0]

        def read() -> ir.TensorProtocol:
            parts = [view.read() for view in views]
            if offset:
                parts = [part.astype(np.float32) + np.float32(offset) for part in parts]
            parts = [part.astype(target, copy=False) for part in parts]
            array = parts[0] if len(parts) == 1 else np.concatenate(parts)
            return ir.Tensor(np.ascontiguousarray(array.T if transpose else array))

        return self.lazy(graph_name, read, dtype=dtype or self.dtype, shape=stored)

    def lazy(
        self,
        name: str,
        read: Callable[[], ir.TensorProtocol],
        *,
        dtype: WeightType,
        shape: tuple[int, ...],
    ) -> ir.Value:
        """Return a weight that ``read`` gives when it is being written, in order of asking."""
        tensor = ir.LazyTensor(read, dtype=DTYPES[dtype], shape=ir.Shape(shape), name=name)
        self._add_initializer(name, tensor)
        return self._initializers[name]

    def external(self, name: str, tensor: ir.ExternalTensor) -> ir.Value:
        """Return a weight that already lies in another file of the bundle."""
        self._add_initializer(name, tensor)
        return self._initializers[name]

    def function(self, function: ir.Function) -> None:
        """Add a model-local function; nodes refer to it by domain and name."""
        self._functions.append(function)

    def extra_output(self, name: str, value: ir.Value) -> None:
        """Add a float32 value of any shape to the outputs, behind those of the contract."""
        value.name = name
        value.type = ir.TensorType(ir.DataType.FLOAT)
        self._extra_outputs.append(value)

    def adopt(self, model: ir.Model, inputs: Mapping[str, ir.Value]) -> list[ir.Value]:
        """Take over the nodes and weights of another model, of this graph's opset.

        Args:
            model: given away; it is of no use after.
            inputs: what its inputs are here.

        Returns:
            Its outputs.
        """
        outputs = list(model.graph.outputs)
        for value in model.graph.inputs:
            ir.convenience.replace_all_uses_with(value, inputs[str(value.name)])
        for name, value in list(model.graph.initializers.items()):
            tensor = value.const_value
            assert tensor is not None  # noqa: S101 - an initializer has a value
            value.name = tensor.name = self.path(name)
            if tensor.dtype.is_floating_point() and tensor.size > 1:
                value.const_value = ir.LazyTensor(
                    partial(_itself, tensor),
                    dtype=tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()),
                    name=value.name,
                )
            self._initializers[value.name] = value
        nodes = list(model.graph)
        model.graph.remove(nodes)
        model.graph.initializers.clear()
        for number, node in enumerate(nodes):
            node.name = self.path(f"{node.op_type}_{number}")
            self._nodes.append(node)
        return outputs

    def model(self, outputs: dict[str, ir.Value]) -> ir.Model:
        """Close the graph: give ``outputs`` the names, types and dimensions of the contract."""
        ordered = []
        for tensor in self.spec.outputs:
            value = outputs[tensor.name]
            value.name = tensor.name
            value.type = ir.TensorType(DTYPES[tensor.dtype])
            value.shape = ir.Shape(tensor.shape)
            ordered.append(value)
        ordered += self._extra_outputs
        domains = {function.domain: 1 for function in self._functions}
        graph = ir.Graph(
            list(self.inputs.values()),
            ordered,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports={"": self.dialect.opset, **domains},
            name=self.spec.name,
        )
        return ir.Model(
            graph,
            ir_version=self.dialect.ir_version,
            producer_name="feather-edge",
            functions=self._functions,
        )

    def _add_initializer(self, name: str, tensor: ir.TensorProtocol) -> None:
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        self._initializers[name] = value


def _itself(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return tensor


def save(forms: Mapping[Path, ir.Model], data: Path, *, on_tensor: Callable[[int], None]) -> None:
    """Write the forms of one graph, and their common weights into ``data``, tensor by tensor.

    Weights that lie in another file of the bundle already stay there. ``on_tensor`` is called
    with the number of bytes after each tensor.
    """
    lazy: dict[str, ir.LazyTensor] = {}
    for model in forms.values():
        for name, value in model.graph.initializers.items():
            if isinstance(value.const_value, ir.LazyTensor):
                lazy.setdefault(name, value.const_value)
    written = ir.external_data.convert_tensors_to_external(
        list(lazy.values()),
        data.parent,
        data.name,
        callback=lambda tensor, _info: on_tensor(tensor.nbytes),
        alignment=4096,
    )
    stored = dict(zip(lazy, written, strict=True))
    for path, model in forms.items():
        for name, value in model.graph.initializers.items():
            if name in stored:
                value.const_value = stored[name]
        ir.save(model, path)
