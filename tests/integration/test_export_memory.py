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

source, output = map(Path, sys.argv[1:3])
small = source.parent / "small"
recipe = ExportRecipe(precision=sys.argv[3], clipping=sys.argv[4])
export(small, output / "small", recipe)
before = peak_kib()
export(source, output / "large", recipe)
print(json.dumps({"before": before, "after": peak_kib()}))
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two checkpoints of the same width, the large one of four times the layers."""
    folder = tmp_path_factory.mktemp("checkpoints")
    sizes = SIZES | {"num_hidden_layers": 8, "hidden_size": 1024, "intermediate_size": 4096}
    write_checkpoint(CHECKPOINT, folder / "large", sizes)
    write_checkpoint(CHECKPOINT, folder / "small", sizes | {"num_hidden_layers": 2})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "clipping"), [("fp16", "none"), ("int8", "none"), ("int4", "mse")]
)
def test_peak_memory_does_not_grow_with_the_model(
    checkpoints: Path, tmp_path: Path, precision: str, clipping: str
) -> None:
    source = checkpoints / "large"
    run = subprocess.run(
        [sys.executable, "-c", EXPORT, str(source), str(tmp_path), precision, clipping],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    peaks = json.loads(run.stdout)
    num_bytes = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    largest = 4096 * 1024 * 2
    # The same few tensors at a time, whether there are two layers of them or eight.
    assert num_bytes > 250 * 2**20
    assert (peaks["after"] - peaks["before"]) * 1024 < 3 * largest
