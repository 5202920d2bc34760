"""Which graphs a bundle has, in which forms, and what composes each of them.

An export writes these graphs; a plan composes them and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from feather_edge.errors import RecipeError
from feather_edge.export.segment import write_segment
from feather_edge.graphs import OPSETS, DecoderShape, decoder_spec
from feather_edge.pruning.schedule import PruningSchedule
from feather_edge.recipes.precision import beyond_opset_18, is_dynamic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import onnx_ir as ir

    from feather_edge.checkpoint.text_config import TextConfig
    from feather_edge.export.builder import GraphBuilder
    from feather_edge.export.families import FamilyModel
    from feather_edge.export.precision import BundlePrecision, GraphPrecision
    from feather_edge.graphs import GraphSpec
    from feather_edge.recipes import ExportRecipe

__all__ = ["GraphPart", "decoder_shape", "graph_parts", "read_opsets", "read_schedule"]


@dataclass(frozen=True, slots=True)
class GraphPart:
    """A graph that is to be written.

    Attributes:
        spec: its contract, in all forms.
        compose: writes its nodes into a builder of one form, and closes it.
        precision: types of its weights and activations.
    """

    spec: GraphSpec
    compose: Callable[[GraphBuilder], ir.Model]
    precision: GraphPrecision


def graph_parts(
    model: FamilyModel,
    schedule: PruningSchedule,
    opsets: tuple[int, ...],
    types: BundlePrecision,
    *,
    folder: Path | None,
) -> Iterator[GraphPart]:
    """Yield the vision encoder, then the decoder's segments in order.

    Args:
        model: the checkpoint.
        schedule: where the decoder is split.
        opsets: of the forms, the main one first.
        types: precision of encoder and decoder.
        folder: the bundle that is being written, whose embeddings a tied head refers to; None in
            a plan.
    """
    yield GraphPart(
        model.vision_spec(types.vision.dtype, opsets), model.write_vision_encoder, types.vision
    )
    for index, segment in enumerate(schedule.segments):
        spec = decoder_spec(
            index,
            segment.layers,
            decoder_shape(model.text),
            is_last=segment == schedule.segments[-1],
            dtype=types.decoder.dtype,
            opsets=opsets,
            num_planes=model.num_planes,
        )
        compose = partial(write_segment, segment=segment, model=model, folder=folder)
        yield GraphPart(spec, compose, types.decoder)


def read_opsets(recipe: ExportRecipe) -> tuple[int, ...]:
    """Return the opsets of a recipe's graphs, the preferred one first."""
    if recipe.opset == "both":
        return (23, 18)
    if recipe.opset not in (None, "all"):
        return (int(recipe.opset),)
    if is_dynamic(recipe):  # TensorRT cannot read it, and the other forms are for TensorRT
        return (23,)
    return tuple(o for o in OPSETS if o > 18) if beyond_opset_18(recipe) else OPSETS


def read_schedule(recipe: ExportRecipe, model: FamilyModel) -> PruningSchedule:
    """Return where a recipe splits the decoder of ``model``.

    Raises:
        RecipeError: if its stages do not fit the decoder's depth.
    """
    num_layers, num_planes = model.text.num_layers, model.num_planes
    if recipe.prune == "none" and recipe.stages is None:
        return PruningSchedule(num_layers=num_layers)
    if recipe.stages is None:
        num_stages = max(2, len(recipe.keep_ratio))
        schedule = PruningSchedule.default(num_layers, num_stages=num_stages)
    else:
        schedule = PruningSchedule(num_layers=num_layers, stages=recipe.stages)
    if schedule.stages and schedule.stages[0] < num_planes:
        raise RecipeError(
            f"stages {schedule.stages}: this model adds visual features to its visual tokens "
            f"after each of the layers 0 to {num_planes - 1}, so they can be pruned before layer "
            f"{num_planes} at the earliest; name other stages"
        )
    return schedule


def decoder_shape(text: TextConfig) -> DecoderShape:
    """Return the sizes of a decoder that graphs and host share."""
    return DecoderShape(
        num_layers=text.num_layers,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        vocab_size=text.vocab_size,
        local_layers=() if text.local is None else text.local.layers,
        has_local_rotary=text.local is not None and text.local.rope_theta is not None,
    )
