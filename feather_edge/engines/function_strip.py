"""A model without its functions, for a TensorRT that would never look for the plugin otherwise.

Before 10.7 a function of the model beats a registered plugin of the same name. The copy lies in a
folder of its own, with links to the weights, which a model names relative to itself.
"""

from __future__ import annotations

import tempfile
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
    with tempfile.TemporaryDirectory(dir=Path(job.result).parent) as folder:
        model = onnx.load(source, load_external_data=False)
        del model.functions[:]
        copy = Path(folder) / source.name
        copy.write_bytes(model.SerializeToString())
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                link = Path(folder) / entry.value
                if entry.key == "location" and not link.exists():
                    link.symlink_to(source.parent / entry.value)
        yield msgspec.structs.replace(job, model=str(copy))
