"""The command line's conventions: help, option names, exit codes, one line per failure."""

from __future__ import annotations

import ast
import errno
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

import feather_edge
from feather_edge import errors
from feather_edge.cli import COMMANDS, main
from feather_edge.recipes import EngineRecipe, ExportRecipe

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
FAMILIAR_LETTERS = {"-o": "--output", "-f": "--force", "-h": "--help", "-q": "--quiet"}


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CliRunner]:
    monkeypatch.chdir(tmp_path)
    return CliRunner()


def loaded(name: str) -> click.Command:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return command


@pytest.mark.parametrize("letters", ["-h", "--help"])
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help(runner: CliRunner, name: str, letters: str) -> None:
    result = runner.invoke(main, [*name.split(), letters])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Usage: ")
    assert "\n  Example:\n    feather-edge" in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_short_help_is_whole(runner: CliRunner, name: str) -> None:
    lines = runner.invoke(main, ["--help"]).stdout.splitlines()
    (line,) = [line for line in lines if line.startswith(f"  {name} ")]
    assert line.endswith("."), "the first docstring line is too long for the list of commands"
    assert not line.endswith("..."), "the first docstring line is too long for the list"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_explains_itself(name: str) -> None:
    for parameter in loaded(name).params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.opts
            for letter in (each for each in parameter.opts if not each.startswith("--")):
                assert FAMILIAR_LETTERS[letter] in parameter.opts


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_in_the_help_parses(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = loaded(name)
    example = (command.epilog or "").splitlines()[-1]
    program, subcommand, *arguments = shlex.split(example)
    assert (program, subcommand) == ("feather-edge", name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scene.png").touch()
    command.make_context(name, arguments)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_small_and_has_no_logic(name: str) -> None:
    module = f"{name.replace('-', '_')}.py"
    text = (Path(feather_edge.__file__).parent / "cli" / module).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 100
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    (callback,) = [node for node in functions if node.name == "command"]
    assert (callback.end_lineno or 0) - callback.body[1].lineno < 25


def test_every_key_of_a_target_is_an_option_of_build_engine() -> None:
    """All but its name for people, and precision, which only an export can change."""
    options = {parameter.name for parameter in loaded("build-engine").params}
    assert set(EngineRecipe.__struct_fields__) - {"description", "precision"} <= options


def test_every_recipe_key_is_an_option_of_export() -> None:
    options = {parameter.name for parameter in loaded("export").params}
    assert set(ExportRecipe.__struct_fields__) <= options


def test_version(runner: CliRunner) -> None:
    result = runner.invoke(main, ["--version"])
    assert result.stdout == f"feather-edge {feather_edge.__version__}\n"


def test_docs_are_what_the_commands_say() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "write_cli_reference.py"), "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# Failures.


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def names(_: str) -> tuple[str, ...]:
        raise error

    monkeypatch.setattr("feather_edge.cli.recipes.recipe_names", names)


@pytest.mark.parametrize("kind", errors.__all__)
def test_an_expected_failure_is_one_line_and_status_1(
    kind: str, runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded("recipes")
    fail_with(getattr(errors, kind)("bundle x is empty; export it again"), monkeypatch)
    result = runner.invoke(main, ["recipes"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "Error: bundle x is empty; export it again\n"


def test_a_failure_of_the_system_is_one_line_and_status_1(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded("recipes")
    fail_with(PermissionError(errno.EACCES, "Permission denied", "bundle/x"), monkeypatch)
    result = runner.invoke(main, ["recipes"])
    assert result.exit_code == 1
    assert result.stderr == "Error: [Errno 13] Permission denied: 'bundle/x'\n"


def test_a_reader_that_has_gone_is_no_failure_worth_words(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded("recipes")
    fail_with(BrokenPipeError(errno.EPIPE, "Broken pipe"), monkeypatch)
    result = runner.invoke(main, ["recipes"])
    assert result.exit_code == 1
    assert result.stderr == ""


def test_ctrl_c_says_aborted(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded("recipes")
    fail_with(KeyboardInterrupt(), monkeypatch)
    result = runner.invoke(main, ["recipes"])
    assert result.exit_code == 1
    assert result.stderr.strip() == "Aborted!"


def test_a_bug_is_not_hidden(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded("recipes")
    fail_with(ZeroDivisionError(), monkeypatch)
    assert isinstance(runner.invoke(main, ["recipes"]).exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("exprot", "No such command 'exprot'"),
        ("export", "Missing argument 'CHECKPOINT'"),
        ("export demo", "Missing option '-o' / '--output'"),
        ("export demo -o b --keep-ratio 1.5", "1.5 is out of range; a ratio must be in (0, 1]"),
        ("export demo -o b --keep-ratio 0", "0 is out of range; a ratio must be in (0, 1]"),
        ("export demo -o b --keep-ratio half", "'half' is not a list of numbers such as 0.5"),
        ("export demo -o b --stages early", "'early' is not a list of layers such as 8,16"),
        ("export demo -o b --stride -1", "-1 is not in the range x>=0"),
        ("export demo -o b --prune best", "'best' is not one of 'feather'"),
        ("export demo -o b --precision int3", "'int3' is not one of 'fp32', 'fp16'"),
        ("run b --prompt hi", "Missing option '--image'"),
        ("run b --image no.png --prompt hi", "File 'no.png' does not exist"),
        ("run b --image - --prompt hi --top-p 0", "0.0 is not in the range 0<x<=1"),
    ],
)
def test_wrong_usage_is_status_2(runner: CliRunner, line: str, text: str) -> None:
    result = runner.invoke(main, shlex.split(line))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert text in result.stderr


def test_a_failing_program_prints_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "feather_edge", "recipes", "fether"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: recipe 'fether' is unknown (did you mean 'feather'?);")
    assert done.stderr.count("\n") == 1


def test_an_option_can_come_from_the_environment(runner: CliRunner) -> None:
    environment = {"FEATHER_EDGE_EXPORT_STRIDE": "many"}
    result = runner.invoke(main, ["export", "demo", "-o", "b"], env=environment)
    assert result.exit_code == 2
    assert "'many' is not a valid integer range" in result.stderr
