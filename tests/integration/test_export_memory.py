"""Weights are streamed: an export's peak memory is a few of its largest tensors, not the model."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from measure_builder_peak import SIZES, write_checkpoint
from support.shipped import CHECKPOINT

if TYPE_CHECKING:
    from pathlib import Path

EXPORT = """
import json, resource, sys
from pathlib import Path
from feather_edge.export.pipeline import export
from feather_edge.recipes import ExportRecipe

def peak_kib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

source, output = map(Path, sys.argv[1:])
small = Path(sys.argv[1]).parent / "small"
export(small, output / "small", ExportRecipe(precision="fp16"))
before = peak_kib()
export(source, output / "large", ExportRecipe(precision="fp16"))
print(json.dumps({"before": before, "after": peak_kib()}))
"""


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    sizes = SIZES | {"num_hidden_layers": 8, "hidden_size": 1024, "intermediate_size": 4096}
    source = write_checkpoint(CHECKPOINT, tmp_path / "large-checkpoint", sizes)
    write_checkpoint(CHECKPOINT, tmp_path / "small", sizes | {"num_hidden_layers": 2})
    (tmp_path / "out").mkdir()
    run = subprocess.run(
        [sys.executable, "-c", EXPORT, str(source), str(tmp_path / "out")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    peaks = json.loads(run.stdout)
    num_bytes = (source / "model.safetensors").stat().st_size
    largest = 4096 * 1024 * 2
    # The same few tensors at a time, whether there are two layers of them or eight.
    assert num_bytes > 250 * 2**20
    assert (peaks["after"] - peaks["before"]) * 1024 < 3 * largest
