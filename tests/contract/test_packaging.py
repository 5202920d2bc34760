"""What the wheel carries: everything a user needs, nothing that lay about."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import feather_edge

if TYPE_CHECKING:
    from email.message import Message

ROOT = Path(__file__).parent.parent.parent
SKIPPED = shutil.ignore_patterns("__pycache__", ".*_cache", "out", "*.engine")
PACKAGED = ("feather_edge", "export", "engines")
STRAYS = (
    "export/out/bundle/decoder_0.onnx", "engines/out/decoder_0.engine", "feather_edge/x.engine",
    "feather_edge/__pycache__/x.pyc", "feather_edge/.mypy_cache/x.json", "tests/test_x.py",
    "tools/x.py", "notes.txt",
)  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy of the checkout with stray files strewn in."""
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGED:
        shutil.copytree(ROOT / name, source / name, ignore=SKIPPED)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for stray in STRAYS:
        (source / stray).parent.mkdir(parents=True, exist_ok=True)
        (source / stray).write_bytes(b"stray")
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def info(wheel: zipfile.ZipFile) -> Message:
    (name,) = [each for each in wheel.namelist() if each.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def expected() -> set[str]:
    paths = [path.relative_to(ROOT) for path in (ROOT / "feather_edge").rglob("*.*")]
    package = {
        path.as_posix()
        for path in paths
        if (ROOT / path).is_file()
        and not any(part == "__pycache__" or part.startswith(".") for part in path.parts)
    }
    recipes = {
        f"feather_edge/_recipes/{stage}/{path.name}"
        for stage in ("export", "engines")
        for path in (ROOT / stage / "recipes").iterdir()
    }
    return package | recipes


def test_files_are_the_package_and_its_recipes(wheel: zipfile.ZipFile) -> None:
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert files == expected()


@pytest.mark.parametrize(
    "name",
    [
        "feather_edge/py.typed",
        "feather_edge/cli/__init__.py",
        "feather_edge/_recipes/export/feather.toml",
        "feather_edge/_recipes/export/scene-vlm.toml",
        "feather_edge/assets/scene_vlm/model.safetensors",
        "feather_edge/assets/scene_vlm/config.json",
    ],
)
def test_named_file_is_in(wheel: zipfile.ZipFile, name: str) -> None:
    assert name in wheel.namelist()


def test_licence_is_in(wheel: zipfile.ZipFile, info: Message) -> None:
    assert info["License-Expression"] == "Apache-2.0"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel.namelist())


def test_small_enough_for_a_package_index(wheel: zipfile.ZipFile) -> None:
    assert Path(str(wheel.filename)).stat().st_size < 20 * 2**20


def test_command_is_installed(wheel: zipfile.ZipFile) -> None:
    (name,) = [each for each in wheel.namelist() if each.endswith("entry_points.txt")]
    assert "feather-edge = feather_edge.cli:main" in wheel.read(name).decode()


def test_name_and_version(info: Message) -> None:
    assert (info["Name"], info["Version"]) == ("feather-edge", feather_edge.__version__)
    assert info["Requires-Python"] == "<3.14,>=3.10"


def requirements(info: Message, extra: str | None) -> set[str]:
    """Return the names that one extra asks for, or those that everybody gets."""
    names = set()
    for line in info.get_all("Requires-Dist", []):
        found = re.search(r"extra == '([\w-]+)'", line)
        if (found.group(1) if found else None) == extra:
            names.add(re.split(r"[\s<>=!~;\[]", line)[0].lower().replace("_", "-"))
    return names


def test_extras_are_the_promised_ones(info: Message) -> None:
    assert set(info.get_all("Provides-Extra", [])) == {
        "ort", "gpu", "tensorrt", "openvino", "torch", "hub", "rtx", "viz", "dev",
    }  # fmt: skip


def test_base_requirements_stay_small(info: Message) -> None:
    assert requirements(info, None) == {
        "click", "jinja2", "ml-dtypes", "msgspec", "numpy", "onnx", "onnx-ir", "pillow",
        "platformdirs", "rich", "safetensors", "tokenizers", "tomli",
    }  # fmt: skip


def test_torchvision_is_never_asked_for(info: Message) -> None:
    assert not any("torchvision" in line for line in info.get_all("Requires-Dist", []))
