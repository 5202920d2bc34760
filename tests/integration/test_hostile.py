"""Two thousand files that were tampered with: refused in one line, or harmless."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.hostile import KINDS

from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from support.bundles import BundleFactory

NUM_EXAMPLES = {
    "sealed_files": 500,
    "manifests": 500,
    "tensors": 300,
    "graphs": 250,
    "tokenizers": 250,
    "pictures": 300,
}


@pytest.fixture(scope="module")
def bundle(bundles: BundleFactory) -> Path:
    recipe = ExportRecipe(stages=(1,), opset="23")
    return bundles(num_layers=2, recipe=recipe).bundle.path


def test_there_are_enough_of_them() -> None:
    assert set(NUM_EXAMPLES) == set(KINDS)
    assert sum(NUM_EXAMPLES.values()) >= 2000


@pytest.mark.parametrize("kind", KINDS)
def test_tampered_files_do_no_harm(bundle: Path, kind: str) -> None:
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "support.hostile", kind, str(bundle), str(NUM_EXAMPLES[kind])],
        cwd=tests,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout.splitlines()[-1]) >= NUM_EXAMPLES[kind]
