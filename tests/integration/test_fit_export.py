"""What ``fit`` says of an export, against a real one in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from measure_builder_peak import SIZES, write_checkpoint
from measure_fit import CHILD
from support.shipped import CHECKPOINT

from feather_edge.fit import fit
from feather_edge.fit.report import ERROR
from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from pathlib import Path

    from feather_edge.recipes import Precision


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_export_peaks_where_fit_says(tmp_path: Path, precision: Precision) -> None:
    sizes = SIZES | {"num_hidden_layers": 3, "hidden_size": 1024, "intermediate_size": 8192}
    checkpoint = write_checkpoint(CHECKPOINT, tmp_path / "model", sizes)
    recipe = ExportRecipe(precision=precision)
    said = fit(checkpoint, recipe=recipe).stages[0].peak_mib
    output = tmp_path / "bundle"
    arguments = ["export", str(checkpoint), "-o", str(output), "--precision", precision]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], check=True, capture_output=True, text=True
    )
    measured = float(done.stdout.rsplit("peak ", 1)[1])
    assert abs(said / measured - 1) < ERROR
    assert said > 110  # more than a process that writes nothing
