"""What ``bench`` refuses, and what it hands on."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import CliRunner

from feather_edge.bench import soak as soaking
from feather_edge.bench.report import LIMITS
from feather_edge.cli import main
from feather_edge.cli.bench import command
from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory


@pytest.fixture
def folder(bundles: BundleFactory) -> Path:
    return bundles(num_layers=4, image_size=56, recipe=ExportRecipe(stages=(1, 3))).bundle.path


def invoke(folder: Path, line: str) -> Any:
    return CliRunner().invoke(main, ["bench", str(folder), *shlex.split(line)])


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--prompt hi", "--image and --prompt go together"),
        ("--soak 10", "'10' is not a time such as 90s, 10m or 2h"),
        ("--soak 0m", "'0m' is not a time such as 90s, 10m or 2h"),
        ("--soak infh", "'infh' is not a time such as"),
        ("--soak xm", "'xm' is not a time such as"),
        ("--fail-above ttft=1", "'ttft' is not one of ttft_ms, prefill_ms"),
        ("--fail-above ttft_ms", "'ttft_ms' is not a limit such as ttft_ms=120"),
        ("--repeat 0", "0 is not in the range x>=1"),
        ("--soak 1m --repeat 3", "--repeat has no effect on --soak; leave it out"),
        ("--soak 1m --warmup 0", "--warmup has no effect on --soak; leave it out"),
        ("--soak 1m --keep-ratio 0.5", "--keep-ratio has no effect on --soak"),
        ("--soak 1m --fail-above ttft_ms=1", "--fail-above has no effect on --soak"),
        ("--soak 1m --max-new-tokens 4", "--max-new-tokens has no effect on --soak"),
    ],
)
def test_wrong_usage(folder: Path, line: str, text: str) -> None:
    result = invoke(folder, line)

    assert result.exit_code == 2, result.output
    assert text in result.stderr


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--plot bench.txt", "plot bench.txt must be a file named .png, .svg, .pdf"),
        ("--pre-keep-ratio 0.5", "pre-keep-ratio 0.5 has no effect: nothing prunes"),
        ("--target agx-orin-64gb", "target agx-orin-64gb names engines, but backend auto runs"),
        ("--keep-ratio 0.5,0.4,0.3", "3 values, but this bundle has 2 pruning stage"),
    ],
)
def test_requests_that_cannot_be(folder: Path, line: str, text: str) -> None:
    result = invoke(folder, line)

    assert result.exit_code == 1
    assert text in result.stderr
    assert result.stderr.count("\n") == 1


def test_limits_are_those_that_help_names() -> None:
    (option,) = (each for each in command.params if each.name == "limits")
    assert isinstance(option, click.Option)
    names = option.help.partition("Names: ")[2]

    assert tuple(names.replace(" (of the pruned request)", "").rstrip(".").split(", ")) == LIMITS


@pytest.mark.parametrize(("time", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_a_soak_gets_its_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch, time: str, seconds: int
) -> None:
    calls = []

    def soak(bundle: object, duration_s: float, **options: Any) -> None:
        calls.append((duration_s, options))
        raise KeyboardInterrupt

    monkeypatch.setattr(soaking, "soak", soak)
    invoke(folder, f"--soak {time} --seed 3 --threads 2")

    ((duration_s, options),) = calls
    assert duration_s == seconds
    assert options == {"seed": 3, "backend": "auto", "num_threads": 2, "cuda_graphs": True,
                       "on_progress": None}  # fmt: skip
