"""What an export would write, settled without reading or writing a weight.

The graphs are composed as an export composes them; only sizes are taken from them. So what a plan
says of a bundle is what the bundle will be, and a folder with nothing but a config is enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from feather_edge.checkpoint.reader import Checkpoint
from feather_edge.errors import CheckpointError
from feather_edge.export.builder import GraphBuilder
from feather_edge.export.description import describe
from feather_edge.export.dialects import DIALECTS
from feather_edge.export.embeddings import EMBEDDINGS, HEAD, embeddings_dtype, is_shared
from feather_edge.export.families import read_family
from feather_edge.export.layout import graph_parts, read_opsets, read_schedule
from feather_edge.export.precision import bundle_precision

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

    from feather_edge.export.families import FamilyModel
    from feather_edge.export.precision import BundlePrecision
    from feather_edge.manifest import BundleManifest
    from feather_edge.pruning.schedule import PruningSchedule
    from feather_edge.recipes import ExportRecipe

__all__ = ["ExportPlan", "plan_export", "skeleton"]

_INTEGER_BITS = {ir.DataType.INT8: 8, ir.DataType.INT4: 4}


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """A bundle that is not there yet.

    Attributes:
        manifest: without files and without what the tokenizer says.
        schedule: where the decoder is split.
        models: by name of a graph, its main form without the data of its weights.
        embeddings_bytes: of the file of the embeddings.
        shared_bytes: of a head that lies in that file too.
        write_bytes: in memory while the tensor that takes most is written: as it lies in the
            checkpoint, and its copies.
        calibration: of the float graphs through which sample prompts are run first, if any are.
        is_traced: PyTorch writes the vision tower, of which only the weights are in the plan.
    """

    manifest: BundleManifest
    schedule: PruningSchedule
    models: dict[str, onnx.ModelProto]
    embeddings_bytes: int
    shared_bytes: int
    write_bytes: int
    calibration: ExportPlan | None
    is_traced: bool


def plan_export(
    checkpoint: Path, recipe: ExportRecipe, *, precision: BundlePrecision | None = None
) -> ExportPlan:
    """Return what ``export`` would write.

    Args:
        checkpoint: a Hugging Face folder; its safetensors files may be missing, and only their
            headers are read.
        recipe: of the export.
        precision: types of the graphs, as of ``export``.

    Raises:
        CheckpointError: if the checkpoint cannot be read or is not supported.
        RecipeError: if the recipe does not fit it.
    """
    source = Checkpoint.plan(checkpoint)
    if source.packed is not None and not source.has_weights:
        raise CheckpointError(
            f"{checkpoint} is quantised ({source.packed.method}) and has no safetensors files, "
            f"whose headers say which layers are; download it first"
        )
    model = read_family(source)
    schedule, opsets = read_schedule(recipe, model), read_opsets(recipe)
    types = precision or bundle_precision(recipe, source.packed)
    specs, models = [], {}
    for part in graph_parts(model, schedule, opsets, types, folder=None):
        form = part.spec.main_form
        builder = GraphBuilder(
            part.spec.of(form),
            model.weights,
            precision=part.precision,
            dialect=DIALECTS[form.opset],
            is_plan=True,
        )
        specs.append(part.spec)
        models[part.spec.name] = part.compose(builder)
    calibration = None
    if precision is None and types.needs_calibration:
        calibration = plan_export(checkpoint, recipe, precision=types.probing())
    embeddings, _ = _embeddings(model, types)
    write_bytes = _write_bytes(model, types, list(models.values()))  # before data is taken out
    return ExportPlan(
        manifest=describe(source, model, recipe, schedule, specs),
        schedule=schedule,
        models={name: skeleton(composed) for name, composed in models.items()},
        embeddings_bytes=embeddings,
        shared_bytes=embeddings if is_shared(model, types.decoder) else 0,
        write_bytes=write_bytes,
        calibration=calibration,
        is_traced=model.is_traced,
    )


def skeleton(model: ir.Model) -> onnx.ModelProto:
    """Return a model whose large weights have a type and a shape, and no data."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.LazyTensor):
            value.const_value = ir.ExternalTensor(
                "weights",
                None,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=str(value.name),
            )
    return ir.to_proto(model)


def _embeddings(model: FamilyModel, types: BundlePrecision) -> tuple[int, int]:
    """Return bytes of the file, and bytes in memory while it is written."""
    shape = (model.text.vocab_size, model.text.hidden_size)
    source = model.weights.tensor(EMBEDDINGS, shape=shape)
    dtype = embeddings_dtype(model, types.decoder)
    stored = math.prod(shape) * dtype.itemsize
    if dtype == np.int8:
        scales = shape[0] * np.dtype(np.float32).itemsize
        return stored + scales, source.nbytes + stored  # quantised in pieces
    return stored, source.nbytes + stored * (dtype != source.dtype)


def _write_bytes(model: FamilyModel, types: BundlePrecision, composed: list[ir.Model]) -> int:
    source = model.weights.tensor(
        EMBEDDINGS, shape=(model.text.vocab_size, model.text.hidden_size)
    ).dtype
    peaks = [_embeddings(model, types)[1]]
    for graph in composed:
        for value in graph.graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.LazyTensor):
                peaks.append(_tensor_peak(tensor, source))
    return max(peaks)


def _tensor_peak(tensor: ir.LazyTensor, source: np.dtype[np.generic]) -> int:
    """Return bytes in memory while a weight is written: the source's, a cast, a transposed one.

    Weights of integers are quantised in pieces, so they have no cast as a whole.
    """
    num = tensor.size
    if tensor.dtype in _INTEGER_BITS:
        packing = num + num // 2 if _INTEGER_BITS[tensor.dtype] == 4 else 0
        return num * source.itemsize + num + packing
    is_cast, is_transposed = tensor.dtype.numpy() != source, tensor.name != HEAD
    num_copies = is_cast + is_transposed
    return num * source.itemsize + tensor.nbytes * num_copies
