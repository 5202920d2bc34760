"""Build an engine in TensorRT-RTX with a Python twin of the plugin; run as a program.

Usage: python tensorrt_rtx_twin.py MODEL.onnx {twin,none,LIBRARY.so}

Prints one JSON document: what was parsed and built, and what the plugin was asked. A program of
its own, since the library may end its process. The twin answers every question of the build; it
never runs, so it is a proof of how TensorRT finds and types the op, not of the kernels.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import onnx
import tensorrt_rtx as trt

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME, VERSION, NAMESPACE = "TopKUniformGather", "1", "feather"
NUM_TENSORS = 3
FLOATS = (trt.float32, trt.float16, trt.bfloat16)

# Dimensions of the two profiles: (min, opt, max) of a prefill, of a decode step.
PROFILES: tuple[dict[str, tuple[int, int, int]], ...] = (
    {
        "batch": (1, 1, 1), "sequence": (1, 256, 512), "past_sequence": (0, 0, 0),
        "total_sequence": (1, 256, 512), "num_kept": (1, 128, 512),
    },
    {
        "batch": (1, 1, 1), "sequence": (1, 1, 1), "past_sequence": (0, 512, 1024),
        "total_sequence": (1, 513, 1025), "num_kept": (1, 1, 1),
    },
)  # fmt: skip

seen: dict[str, Any] = {}


class Twin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
    """Says of the op what the C++ plugin says."""

    def __init__(self) -> None:
        for base in Twin.__bases__:
            base.__init__(self)
        self.plugin_name, self.plugin_version, self.plugin_namespace = NAME, VERSION, NAMESPACE
        self.num_outputs = 1 + NUM_TENSORS

    def get_capability_interface(self, kind: object) -> Twin:
        return self

    def get_output_data_types(self, types: Sequence[object]) -> list[object]:
        seen["input_types"] = [str(each) for each in types]
        return [trt.int64, *types[-NUM_TENSORS:]]

    def get_output_shapes(
        self, inputs: Sequence[Any], shape_inputs: Sequence[Any], builder: object
    ) -> list[object]:
        seen["shape_inputs"] = [len(each) for each in shape_inputs]
        batch, num_kept = inputs[0][0], shape_inputs[0][0]
        kept = [[batch, num_kept, each[2]] for each in inputs[-NUM_TENSORS:]]
        return [trt.DimsExprs(dims) for dims in ([batch, num_kept], *kept)]

    def supports_format_combination(
        self, position: int, tensors: Sequence[Any], num_inputs: int
    ) -> bool:
        tensor = tensors[position].desc
        if tensor.format != trt.TensorFormat.LINEAR:
            return False
        if position < num_inputs - NUM_TENSORS:
            return tensor.type == trt.float32
        if position < num_inputs:
            return tensor.type in FLOATS
        if position == num_inputs:
            return tensor.type == trt.int64
        return tensor.type == tensors[position - 1 - NUM_TENSORS].desc.type

    def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        seen["profiles"] = seen.get("profiles", 0) + 1
        seen["output_types"] = [str(each.desc.type) for each in outputs]
        seen["kept_max"] = list(outputs[0].max)

    def get_fields_to_serialize(self) -> object:
        return trt.PluginFieldCollection([])

    def attach_to_context(self, context: object) -> Twin:
        return Twin()

    def clone(self) -> Twin:
        return Twin()

    def get_valid_tactics(self) -> list[int]:
        return []

    def get_workspace_size(self, inputs: object, outputs: object) -> int:
        return 0


class Creator(trt.IPluginCreatorV3One):
    """Makes twins."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.plugin_version, self.plugin_namespace = NAME, VERSION, NAMESPACE
        self.field_names = trt.PluginFieldCollection([])

    def create_plugin(self, name: str, fields: object, phase: object) -> Twin:
        seen["node"] = name
        return Twin()


class Log(trt.ILogger):
    """Keeps warnings and errors."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity <= trt.ILogger.Severity.WARNING:
            self.lines.append(f"{str(severity).rpartition('.')[2]}: {message}")


def shape(value: onnx.ValueInfoProto, profile: dict[str, tuple[int, int, int]], which: int) -> Any:
    """Return the lengths of an input: min, opt or max of a profile."""
    dims = value.type.tensor_type.shape.dim
    return tuple(profile[d.dim_param][which] if d.dim_param else d.dim_value for d in dims)


def build(path: str, log: Log) -> int | None:
    """Return the bytes of the engine for sm_86, or None."""
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    seen["parsed"] = parser.parse_from_file(path)
    if not seen["parsed"]:
        return None
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    seen["plugin_layers"] = [each.name for each in layers if each.type == trt.LayerType.PLUGIN_V3]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    inputs = {value.name: value for value in onnx.load(path, load_external_data=False).graph.input}
    for lengths in PROFILES:
        profile = builder.create_optimization_profile()
        for i in range(network.num_inputs):
            name = network.get_input(i).name
            if network.get_input(i).is_shape_tensor:
                profile.set_shape_input(name, *([each] for each in lengths[name]))
            else:
                profile.set_shape(name, *(shape(inputs[name], lengths, j) for j in range(3)))
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    return None if engine is None else engine.nbytes


def main(path: str, plugin: str) -> None:
    """Build with the twin, with a plugin library, or with neither."""
    log = Log()
    registry = trt.get_plugin_registry()
    creator = Creator()  # the registry does not keep it
    if plugin == "twin":
        registry.register_creator(creator, NAMESPACE)
    elif plugin != "none":
        registry.load_library(plugin)
    seen["engine_bytes"] = build(path, log)
    sys.stdout.write(json.dumps({**seen, "log": log.lines}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
