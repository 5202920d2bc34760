"""A copy of a model, changed as a TensorRT wants it, for the time of a build.

- Before 10.7 a function of the model beats a registered plugin of the same name, so it is cut.
- Caches in place need a capacity that the parser can read, and a bundle leaves it open.

The copy lies beside the model, because a model names its weights relative to itself, and readers
refuse links to them.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx

    from feather_edge.engines.jobs import EngineJob

__all__ = ["with_model_copy"]


@contextmanager
def with_model_copy(job: EngineJob) -> Iterator[EngineJob]:
    """Yield the job with a changed copy of its model, or as it is where nothing is to change."""
    if not job.strip_functions and not job.fixed_dims:
        yield job
        return
    import onnx

    source = Path(job.model)
    model = onnx.load(source, load_external_data=False)
    if job.strip_functions:
        del model.functions[:]
    _fix_dims(model.graph, job.fixed_dims)
    copy = source.with_name(f".{source.stem}.{os.getpid()}.onnx")
    try:
        copy.write_bytes(model.SerializeToString())
        yield msgspec.structs.replace(job, model=str(copy))
    finally:
        copy.unlink(missing_ok=True)


def _fix_dims(graph: onnx.GraphProto, sizes: Mapping[str, int]) -> None:
    """Give named dimensions of inputs and outputs their sizes."""
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
