"""``feather-edge deploy``: options, documents, and what is refused."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

from feather_edge.cli import main
from feather_edge.cli._deploy_options import STAGES as NAMED_STAGES
from feather_edge.deploy.state import STAGES
from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from collections.abc import Iterator

DEMO = ["deploy", "demo", "-o", "bundle", "--target"]
SHORT = ["--warmup", "0", "--repeat", "1"]


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CliRunner]:
    monkeypatch.chdir(tmp_path)
    return CliRunner()


def test_every_recipe_key_is_an_option() -> None:
    command = main.get_command(click.Context(main), "deploy")
    assert command is not None
    assert set(ExportRecipe.__struct_fields__) <= {each.name for each in command.params}


def test_the_stages_are_named_as_they_are() -> None:
    assert NAMED_STAGES == STAGES


def test_a_dry_run_as_a_document(runner: CliRunner) -> None:
    result = runner.invoke(main, [*DEMO, "cpu", "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert [stage["what"] for stage in plan["stages"]] == [
        "runs", "runs", "not-needed", "runs", "runs",
    ]  # fmt: skip
    assert list(Path().iterdir()) == []


def test_a_dry_run_for_another_device(runner: CliRunner) -> None:
    result = runner.invoke(main, [*DEMO, "orin-nano-8gb", "--dry-run"])
    assert result.exit_code == 0, result.output
    for words in ("demo on orin-nano-8gb would become bundle", "would run", "on the device"):
        assert words in result.stdout


@pytest.mark.slow
def test_the_demo_is_deployed_and_reported(runner: CliRunner) -> None:
    result = runner.invoke(main, [*DEMO, "cpu", *SHORT, "--report", "page.html"])
    assert result.exit_code == 0, result.output
    assert "bundle: demo on cpu" in result.stdout
    assert "report: bundle/report.html" in result.stdout
    assert "export: runs, not done yet" in result.stderr
    assert Path("page.html").read_bytes() == Path("bundle/report.html").read_bytes()

    again = runner.invoke(main, [*DEMO, "cpu", *SHORT, "--json"])
    assert again.exit_code == 0, again.output
    report = json.loads(again.stdout)
    assert report["is_complete"] is True
    assert [stage["is_new"] for stage in report["stages"]] == [False] * 5
    assert len(report["bench"]["unpruned"]["timings"]) == 1


@pytest.mark.slow
def test_what_is_left_for_the_device_is_a_command_that_parses(runner: CliRunner) -> None:
    result = runner.invoke(main, [*DEMO, "orin-nano-8gb", *SHORT, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["is_complete"] is False
    assert report["bench"] is None
    _, name, *arguments = shlex.split(report["next_command"])
    command = main.get_command(click.Context(main), name)
    assert command is not None
    parsed = command.make_context(name, arguments).params
    assert parsed["from_stage"] == "build-engine"


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        (["cpu", "--from-stage", "build"], 2, "'build' is not one of 'fit', 'export'"),
        (["toaster"], 1, "recipe 'toaster' is unknown"),
        (["rtx", "--backend", "openvino"], 1, "backend openvino runs the graphs of target cpu"),
        (["cpu", "--from-stage", "bench"], 1, "bundle has no record of fit, which comes before"),
        (["cpu", "--report", "no/where.html"], 1, "report no/where.html cannot be written"),
    ],
)
def test_what_is_refused(runner: CliRunner, options: list[str], status: int, text: str) -> None:
    result = runner.invoke(main, [*DEMO, *options])
    assert result.exit_code == status
    assert text in result.stderr
    assert result.stdout == ""
    assert list(Path().iterdir()) == []


def test_something_else_is_never_replaced(runner: CliRunner) -> None:
    Path("bundle").mkdir()
    Path("bundle/thesis.txt").write_text("precious")
    result = runner.invoke(main, [*DEMO, "cpu", "--force"])
    assert result.exit_code == 1
    assert result.stderr == "Error: bundle exists and is not a bundle; choose another output\n"
    assert Path("bundle/thesis.txt").read_text() == "precious"
