"""What importing costs is a contract: a robot's start-up must not load what it does not use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from feather_edge.cli import COMMANDS

HEAVY = (
    "torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "openvino", "tensorrt",
    "tensorrt_rtx", "PIL", "matplotlib", "huggingface_hub",
)  # fmt: skip

HELP = "from feather_edge.cli import main; main({}, standalone_mode=False)"


def heavy_modules_after(statement: str) -> set[str]:
    """Return which heavy modules a fresh interpreter holds after `statement`."""
    report = (
        f"import sys; print(*(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\n{report}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_the_check_sees_a_heavy_import() -> None:
    assert heavy_modules_after("import PIL") == {"PIL"}


@pytest.mark.parametrize(
    "statement",
    [
        "import feather_edge",
        "from feather_edge import errors",
        "import feather_edge.recipes",
        "import feather_edge.doctor",
        "import feather_edge.runtime",
        "import feather_edge.cli",
        HELP.format(["--help"]),
        HELP.format(["--version"]),
    ],
)
def test_light(statement: str) -> None:
    assert heavy_modules_after(statement) == set()


@pytest.mark.parametrize("name", ["Session", "FakeBackend", "Pruning", "Sampling", "Bundle"])
def test_public_names_are_light(name: str) -> None:
    assert heavy_modules_after(f"from feather_edge import {name}") == set()


def test_help_of_every_command_is_light() -> None:
    lines = ["from feather_edge.cli import main"]
    lines += [f"main([{name!r}, '--help'], standalone_mode=False)" for name in COMMANDS]
    assert heavy_modules_after("\n".join(lines)) == set()


def test_import_of_the_package_loads_no_numpy() -> None:
    statement = "import feather_edge, sys; assert 'numpy' not in sys.modules"
    assert heavy_modules_after(statement) == set()
