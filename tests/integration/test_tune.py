"""``tune`` and ``run --deadline-ms`` on the shipped model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from support.shipped import SCENES

from feather_edge.cli import main

if TYPE_CHECKING:
    from pathlib import Path

QUESTION = ("--image", SCENES / "02.png", "--prompt", "where is the purple star ?")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune") / "bundle"
    invoke("export", "demo", "-o", folder, "--opset", "23")
    return folder


def invoke(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    assert result.exit_code == status, result.output
    return result.stdout if status == 0 else result.stderr


def test_a_deadline_before_and_after_tuning(bundle: Path) -> None:
    asked = ("run", bundle, *QUESTION, "--deadline-ms", "100000")
    error = invoke(*asked, status=1)
    assert f"measure with: feather-edge tune {bundle} --backend onnxruntime" in error

    tuned = ("tune", bundle, "--budget-ttft-ms", "0.001", "--repeat", "2", "--warmup", "0")
    out = invoke(*tuned, "--keep-ratio", ".5,.1")
    assert "no keep ratio meets 0.001 ms here; the smallest, 0.1, runs" in out
    assert f"for feather-edge run {bundle} --deadline-ms MS" in out

    found = json.loads(invoke(*asked, "--json"))["deadline"]
    assert (found["keep_ratio"], found["is_met"]) == (1.0, True)
    hasty = json.loads(invoke(*asked[:-1], "0.001", "--json"))
    assert (hasty["deadline"]["keep_ratio"], hasty["deadline"]["is_met"]) == (0.1, False)
    assert [stage["num_kept"] for stage in hasty["stages"]] == [42, 1]


def test_the_table_names_the_command_that_made_it(bundle: Path) -> None:
    image = ("--image", SCENES / "02.png", "--prompt", "what is it?", "--repeat", "1")
    report = json.loads(
        invoke("tune", bundle, "--budget-ttft-ms", "50", *image, "--keep-ratio", ".5,.1", "--json")
    )
    assert report["calibration"]["command"] == (
        f"feather-edge tune {bundle} --budget-ttft-ms 50.0 --keep-ratio 0.5,0.1 --image "
        f"{SCENES / '02.png'} --prompt 'what is it?' --repeat 1"
    )
    assert report["search"] is None
    assert report["budget"]["deadline_ms"] == 50


def test_the_cheapest_that_keeps_the_places(bundle: Path) -> None:
    asked = ("tune", bundle, "--min-accuracy", "0.9", "--accuracy-of", "localisation")
    out = invoke(*asked, "--limit", "4", "--method", "feather,uniform", "--keep-ratio", ".5,.1",
                 "--repeat", "1", "--warmup", "0")  # fmt: skip
    assert "scenes: 4 samples for the choice, cheapest first" in out
    assert "On 4 samples that served no choice it keeps localisation 100.0%" in out


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        ((), 1, "nothing to tune for; give --budget-ttft-ms, --min-accuracy, or both"),
        (("--budget-ttft-ms", "9", "--task", "coarse"), 2, "--task has no effect without --min"),
        (("--budget-ttft-ms", "9", "-o", "x"), 2, "--output has no effect without --min-accuracy"),
        (("--budget-ttft-ms", "9", "--prompt", "x"), 2, "--image and --prompt go together"),
    ],
)
def test_what_cannot_be_asked(
    bundle: Path, options: tuple[str, ...], status: int, text: str
) -> None:
    assert text in invoke("tune", bundle, *options, status=status)
