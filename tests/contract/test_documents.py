"""Documents that could go stale: their commands parse or run, their links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import msgspec
import numpy as np
import pytest

import feather_edge
from feather_edge.cli import main
from feather_edge.recipes import ExportRecipe

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = [
    *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("e*/README.md"),
]  # fmt: skip
README = ROOT / "README.md"

INSTALL_AND_RUN = "pip install '.[ort]' && feather-edge demo"
INSTALL_AND_TEST = "pip install '.[dev]' && pytest"
CHEAP = ("feather-edge doctor", "feather-edge recipes", "feather-edge --version")


def fenced(path: Path, language: str) -> list[str]:
    """Return the blocks of a document in a language."""
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(path: Path) -> list[str]:
    """Return the command lines of a document that start our program."""
    lines = "\n".join(fenced(path, "bash")).replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [part for part in parts if part.startswith("feather-edge")]


ALL_COMMANDS = sorted({line for path in DOCUMENTS for line in commands(path)})


def test_the_two_set_up_commands_are_in_the_readme() -> None:
    blocks = [block.strip() for block in fenced(README, "bash")]
    assert INSTALL_AND_RUN in blocks
    assert INSTALL_AND_TEST in blocks


def test_ci_runs_what_the_readme_says() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for part in ("'.[dev]'", "pytest |", "[ort]", "feather-edge demo"):
        assert part in script


def test_there_are_commands_to_check() -> None:
    assert len(ALL_COMMANDS) >= 4


@pytest.mark.parametrize("line", ALL_COMMANDS)
def test_a_documented_command_parses(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, *arguments = shlex.split(line, comments=True)
    for argument in arguments:  # pictures that a command would read
        if argument == "FILE" or argument.endswith((".png", ".jpg")):
            (tmp_path / argument).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / argument).touch()
    if not arguments[0].startswith("-"):
        # As main makes it: click keeps the help option of a command that it has once parsed.
        group = click.Context(main, **main.context_settings)
        command = main.get_command(group, arguments[0])
        assert command is not None, f"no command {arguments[0]}"
        command.make_context(arguments[0], arguments[1:], parent=group)


def test_cheap_commands_are_documented() -> None:
    assert {"feather-edge doctor", "feather-edge recipes"} <= set(ALL_COMMANDS)


@pytest.mark.parametrize("line", [line for line in ALL_COMMANDS if line.startswith(CHEAP)])
def test_a_cheap_documented_command_runs(line: str, tmp_path: Path) -> None:
    _, *arguments = shlex.split(line, comments=True)
    done = subprocess.run(
        [sys.executable, "-m", "feather_edge", *arguments],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_blocks_compile_and_import_what_exists(path: Path) -> None:
    for block in fenced(path, "python"):
        compile(block, str(path), "exec")
        for module, names in re.findall(r"^from (feather_edge[\w.]*) import (.+)$", block, re.M):
            for name in names.split(","):
                exec(f"from {module} import {name}", {})  # noqa: S102 - lines of our own documents


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize(
    ("name", "limit"), [("README.md", 250), ("CONTRIBUTING.md", 120), ("Makefile", 40),
                        (".ci/run", 30)],
)  # fmt: skip
def test_length(name: str, limit: int) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= limit


def test_the_changelog_knows_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", text, re.MULTILINE)
    assert versions[0] == feather_edge.__version__


def test_the_recipe_table_has_every_key_and_its_default() -> None:
    text = (ROOT / "export" / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", text, re.MULTILINE))
    assert set(rows) == set(ExportRecipe.__struct_fields__)
    default = ExportRecipe()
    for key, value in msgspec.structs.asdict(default).items():
        if value is None:
            continue
        shown = list(value) if isinstance(value, tuple) else value
        assert rows[key].strip("`").replace('"', "'") == repr(shown)


def test_the_criteria_of_the_tutorial_run() -> None:
    names: dict[str, Any] = {}
    for block in fenced(ROOT / "docs" / "adding-a-criterion.md", "python"):
        exec(block, names)  # noqa: S102 - our own document
    names["test_the_middle_goes_first"]()
    tokens = SimpleNamespace(features=np.array([[1.0, 0.0], [3.0, 4.0]], np.float32))
    assert names["strongest"](tokens, 1).tolist() == [1.0, 5.0]
