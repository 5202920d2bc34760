"""A model as a job's TensorRT is to read it; the file, part of a bundle, stays as it is.

- Before 10.7 a function of the model beats a registered plugin of the same name, so it is cut.
- Caches in place need a capacity that the parser can read, and a bundle leaves it open.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from feather_edge.errors import BuildError

if TYPE_CHECKING:
    import onnx

    from feather_edge.engines.jobs import EngineJob

__all__ = ["model_bytes"]


def model_bytes(job: EngineJob) -> bytes:
    """Return the model of a job, without its weights, which it names relative to its file.

    Raises:
        BuildError: if it names weights outside its folder.
    """
    import onnx

    model = onnx.load(Path(job.model), load_external_data=False)
    for tensor in model.graph.initializer:
        _check_location(tensor, Path(job.model))
    if job.strip_functions:
        del model.functions[:]
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in job.fixed_dims:
                dim.dim_value = job.fixed_dims[dim.dim_param]
    data: bytes = model.SerializeToString()
    return data


def _check_location(tensor: onnx.TensorProto, model: Path) -> None:
    """Refuse weights that lie outside the model's folder; TensorRT would read any file."""
    folder = model.parent.resolve()
    for entry in tensor.external_data:
        if entry.key == "location" and not (folder / entry.value).resolve().is_relative_to(folder):
            raise BuildError(
                f"{model} takes tensor {tensor.name!r} from {entry.value!r}, which is outside its "
                f"folder; the graph is not one that export wrote, export the bundle again"
            )
