"""A model without its functions, for a TensorRT that would never look for the plugin otherwise.

Before 10.7 a function of the model beats a registered plugin of the same name. The copy lies
beside the model while it is needed, because a model names its weights relative to itself, and
readers refuse links to them.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from feather_edge.engines.jobs import EngineJob

__all__ = ["without_functions"]


@contextmanager
def without_functions(job: EngineJob) -> Iterator[EngineJob]:
    """Yield the job with a stripped copy of its model, or as it is where that is not asked for."""
    if not job.strip_functions:
        yield job
        return
    import onnx

    source = Path(job.model)
    model = onnx.load(source, load_external_data=False)
    del model.functions[:]
    copy = source.with_name(f".{source.stem}.{os.getpid()}.onnx")
    try:
        copy.write_bytes(model.SerializeToString())
        yield msgspec.structs.replace(job, model=str(copy))
    finally:
        copy.unlink(missing_ok=True)
