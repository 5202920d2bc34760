"""Vision towers that ``blocks.vision`` does not know, traced with PyTorch into the same graph.

The only part of an export that needs torch and transformers, and the tower's weights in memory.
The projector behind it, names of inputs and outputs, and everything else stay the builder's.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from feather_edge.checkpoint.vision_config import TowerShape
from feather_edge.errors import CheckpointError, RecipeError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx_ir as ir
    import torch

    from feather_edge.export.builder import GraphBuilder
    from feather_edge.export.weights import Weights

TRACED_OPSET = 18
"""What is traced is of the older dialect, and converted to the newer one."""


def tower_shape(raw: dict[str, Any]) -> TowerShape:
    """Return the sizes of the tower that a VLM's config.json names, as transformers reads them.

    Raises:
        UnsupportedModelError: if torch or transformers is missing, or they have no such tower,
            or it is not a tower of square images cut into square patches.
    """
    config = _transformers_config(raw)
    sizes = {}
    for name in ("hidden_size", "num_hidden_layers", "num_channels", "image_size", "patch_size"):
        value = getattr(config, name, None)
        if isinstance(value, list | tuple) and len(set(value)) == 1:
            value = value[0]
        if type(value) is not int:
            raise UnsupportedModelError(
                f"vision_config: {name} of {config.model_type} is {value!r}; a tower can be "
                f"traced if it takes square images of one size, cut into square patches"
            )
        sizes[name] = value
    return TowerShape(
        model_type=config.model_type,
        hidden_size=sizes["hidden_size"],
        num_layers=sizes["num_hidden_layers"],
        num_channels=sizes["num_channels"],
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
    )


def traced_tower(
    g: GraphBuilder,
    pixels: ir.Value,
    raw: dict[str, Any],
    weights: Weights,
    *,
    feature_layers: Sequence[int],
) -> list[ir.Value]:
    """Trace a tower into ``g``; arguments and result as of ``blocks.vision.vision_tower``.

    Args:
        g: the graph.
        pixels: [N, C, height, width].
        raw: config.json of the whole VLM.
        weights: the tower's are below ``vision.``.
        feature_layers: after how many layers to take the features; 0 is the embeddings.

    Returns:
        Hidden states [N, rows, Dv], one per entry.

    Raises:
        RecipeError: if its weights should be integers: what PyTorch writes stays float.
        CheckpointError: if the checkpoint lacks a weight of the tower.
        UnsupportedModelError: if PyTorch cannot trace the tower.
    """
    import torch

    _check_float(g, raw)
    with _quiet():
        tower = _load_tower(raw, weights).to(getattr(torch, g.dtype))
    shape = tower_shape(raw)
    example = torch.zeros(
        2, shape.num_channels, shape.image_size, shape.image_size, dtype=getattr(torch, g.dtype)
    )
    with _quiet():
        try:
            program = torch.onnx.export(
                _hidden_states(tower, feature_layers),
                (example,),
                dynamo=True,
                opset_version=TRACED_OPSET,
                dynamic_shapes={"pixel_values": {0: torch.export.Dim("num_images")}},
                input_names=["pixel_values"],
                verbose=False,
            )
        except Exception as error:  # whatever the tracer, the exporter and the tower raise
            raise UnsupportedModelError(
                f"vision tower {shape.model_type!r} cannot be traced: {error}"
            ) from error
    assert program is not None  # noqa: S101 - dynamo=True returns a program
    return g.adopt(_in_dialect(program.model, g.dialect.opset), {"pixel_values": pixels})


def planned_tower(
    g: GraphBuilder,
    pixels: ir.Value,
    raw: dict[str, Any],
    weights: Weights,
    *,
    feature_layers: Sequence[int],
) -> list[ir.Value]:
    """Stand in for a tower in a plan: its weights and its outputs, and no layer between them.

    Arguments and result are those of ``traced_tower``; neither torch nor a weight is touched, so
    what is alive within the tower is not in the graph.

    Raises:
        RecipeError: as ``traced_tower``.
        CheckpointError: if there are no safetensors files, whose headers say what the tower has.
    """
    _check_float(g, raw)
    tensors = weights.below("vision.")
    if not tensors:
        raise CheckpointError(
            f"vision tower {raw['vision_config']['model_type']!r} has to be traced, and what it "
            f"holds is known from the headers of its safetensors files, which are missing; "
            f"download the checkpoint first"
        )
    for name, view in tensors.items():
        g.weight(f"vision.{name}", shape=view.shape)
    shape = tower_shape(raw)
    num_rows = shape.num_patches + (raw["vision_feature_select_strategy"] == "default")
    num_images = g.op("Shape", pixels, name="num_images", start=0, end=1)
    sizes = g.op("Concat", num_images, g.ints(num_rows, shape.hidden_size), name="sizes", axis=0)
    return [
        g.op("Expand", g.scalar("zero", 0.0), sizes, name=f"features_{layer}")
        for layer in feature_layers
    ]


def _check_float(g: GraphBuilder, raw: dict[str, Any]) -> None:
    if g.precision.linears != "float":
        raise RecipeError(
            f"vision tower {raw['vision_config']['model_type']!r} has to be traced, which leaves "
            f"its weights float; export with --vision-precision fp32 or fp16"
        )


def _in_dialect(model: ir.Model, opset: int) -> ir.Model:
    from onnxscript import version_converter

    if opset != TRACED_OPSET:
        version_converter.convert_version(model, target_version=opset)
    return model


def _transformers_config(raw: dict[str, Any]) -> Any:
    part = dict(raw["vision_config"])
    model_type = part.pop("model_type")
    try:
        import onnxscript  # noqa: F401 - torch.onnx.export needs it, and says so less clearly
        import transformers
    except ImportError as error:
        raise UnsupportedModelError(
            f"vision_config has model_type {model_type!r}, which has to be traced; for that, "
            f"install: pip install 'feather-edge[torch]'"
        ) from error
    try:
        return transformers.AutoConfig.for_model(model_type, **part)
    except ValueError as error:
        raise UnsupportedModelError(
            f"vision_config has model_type {model_type!r}, which the installed transformers "
            f"{transformers.__version__} does not know; upgrade it"
        ) from error


def _load_tower(raw: dict[str, Any], weights: Weights) -> torch.nn.Module:
    import torch
    import transformers

    config = _transformers_config(raw)
    state = {
        name: torch.from_numpy(view.read()) for name, view in weights.below("vision.").items()
    }
    model_class: Any = transformers.MODEL_MAPPING[type(config)]
    # transformers knows how releases before it named the tensors; what it misses it would draw.
    tower: torch.nn.Module
    tower, report = model_class.from_pretrained(
        None,
        config=config,
        state_dict=state,
        attn_implementation="eager",
        output_loading_info=True,
    )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise CheckpointError(
            f"the checkpoint has no tensor for {missing[0]!r} of the vision tower "
            f"{config.model_type!r} ({len(missing)} such); it is not complete, or of another "
            f"release of transformers"
        )
    return tower.eval()


def _hidden_states(tower: torch.nn.Module, layers: Sequence[int]) -> torch.nn.Module:
    """Return a module from ``pixel_values`` to the hidden states after ``layers``."""
    import torch

    class HiddenStates(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = tower

        def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            states = self.tower(pixel_values, output_hidden_states=True).hidden_states
            return tuple(states[layer] for layer in layers)

    return HiddenStates()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what transformers and the exporter note on themselves off the terminal."""
    from transformers.utils import logging as transformers_logging

    bars: Any = transformers_logging
    has_bar = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if has_bar:
            bars.enable_progress_bar()
