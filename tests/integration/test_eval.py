"""``eval`` and ``visualise`` on the shipped model: few scenes, the commands as typed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from PIL import Image
from support.shipped import SCENES

from feather_edge.cli import main

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval") / "bundle"
    invoke("export", "demo", "-o", folder, "--stages", "2,4", "--opset", "23")
    return folder


def invoke(*arguments: str | Path, status: int = 0) -> str:
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    assert result.exit_code == status, result.output
    return result.stdout if status == 0 else result.stderr


def test_scenes_are_compared_and_a_rerun_asks_nothing(bundle: Path, tmp_path: Path) -> None:
    ask = ("eval", bundle, "--limit", "3", "-o", tmp_path / "out", "--method", "feather,uniform")
    document = json.loads(invoke(*ask, "--keep-ratio", ".5,.25", "--json"))
    assert (document["task"], document["num_samples"]) == ("scenes", 3)
    none, *pruned = document["rows"]
    assert (none["method"], none["keep_ratio"], none["flops_ratio"]) == ("none", 1.0, 1.0)
    assert none["localisation_acc"] == none["coarse_acc"] == 1.0
    assert none["mean_kept_row"] == pytest.approx(0.5)
    assert [(row["method"], row["keep_ratio"]) for row in pruned] == [
        ("feather", 0.5), ("uniform", 0.5), ("feather", 0.25), ("uniform", 0.25),
    ]  # fmt: skip
    assert pruned[0]["flops_ratio"] == pruned[1]["flops_ratio"] < 1
    assert pruned[2]["flops_ratio"] == pruned[3]["flops_ratio"] < pruned[0]["flops_ratio"]
    answers = (tmp_path / "out" / "samples.jsonl").read_bytes()
    table = invoke(*ask, "--keep-ratio", ".5,.25")
    assert (tmp_path / "out" / "samples.jsonl").read_bytes() == answers
    assert "localisation" in table
    assert "feather" in table
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "conditions.json", "samples.jsonl", "summary.json", "report.md",
    }  # fmt: skip
    assert "holds answers with seed 0" in invoke(*ask, "--seed", "3", status=1)


def test_a_file_of_pictures_is_judged(bundle: Path, tmp_path: Path) -> None:
    scenes = json.loads((SCENES / "scenes.json").read_text(encoding="utf-8"))[:2]
    lines = []
    for scene in scenes:
        with Image.open(SCENES / scene["file"]) as image:
            image.resize((224, 224)).save(tmp_path / scene["file"])
        for asked in scene["questions"]:
            truth = (
                {"box": [2 * pixels for pixels in asked["box"]]}
                if "box" in asked
                else {"answer": asked["answer"].upper()}
            )
            lines.append(
                json.dumps({"image": scene["file"], "question": asked["question"], **truth})
            )
    (tmp_path / "own.jsonl").write_text("\n".join(lines), encoding="utf-8")
    ask = ("eval", bundle, "--task", tmp_path / "own.jsonl", "-o", tmp_path / "out")
    document = json.loads(
        invoke(*ask, "--method", "fastv", "--keep-ratio", "1", "--budget", "own", "--json")
    )
    assert document["num_samples"] == len(lines)
    for row in document["rows"]:
        assert row["localisation_acc"] == 1.0
        assert row["coarse_acc"] >= 0.75


@pytest.mark.parametrize("command", ["visualise", "visualize"])
def test_visualise_draws_a_row_for_each_criterion(
    bundle: Path, tmp_path: Path, command: str
) -> None:
    ask = (command, bundle, "--image", SCENES / "02.png", "-o", tmp_path / "kept.png")
    question = ("--prompt", "where is the purple star ?", "--keep-ratio", ".3,.05")
    document = json.loads(invoke(*ask, *question, "--prune", "feather,uniform", "--json"))
    assert [stage["num_kept"] for stage in document["unpruned"]["stages"]] == [196, 196]
    for result in document["results"]:
        assert [stage["num_kept"] for stage in result["stages"]] == [58, 9]
    assert len(document["results"][0]["box"]) == 4
    with Image.open(tmp_path / "kept.png") as sheet:
        assert sheet.width > 5 * 330
        assert sheet.height > 2 * 330
    text = invoke(*ask, "--prompt", "how many stars are there ?")
    assert text.splitlines()[0].startswith("none: ")
    assert text.splitlines()[-1] == str(tmp_path / "kept.png")


def test_visualise_prunes_before_the_decoder_and_refuses_what_is_in_vain(
    bundle: Path, tmp_path: Path
) -> None:
    ask = ("visualise", bundle, "--image", SCENES / "02.png", "-o", tmp_path / "kept.png")
    question = ("--prompt", "how many stars are there ?", "--prune", "fastv,none")
    pruned = ("--pre-prune", "dart", "--pre-keep-ratio", "0.25")
    names = [line.split(":")[0] for line in invoke(*ask, *question, *pruned).splitlines()]
    assert names[:3] == ["none", "dart + fastv", "dart"]
    error = invoke(*ask, *question, "--stride", "2", status=1)
    assert "stride 2 has no effect: criterion fastv has no grid" in error
    assert "kept" in invoke(*ask, *question[:2], "--prune", "fastv,feather", "--stride", "2")


def test_the_alias_is_not_listed() -> None:
    out = invoke("--help")
    assert "visualise" in out
    assert "visualize" not in out


def test_several_pictures_cannot_be_drawn_from_one_result(bundle: Path) -> None:
    from feather_edge import Session
    from feather_edge.errors import RequestError
    from feather_edge.viz import draw_results

    picture = SCENES / "00.png"
    with Session.open(bundle) as session:
        one = session.generate(picture, "how many stars are there ?")
        two = session.generate([picture, picture], "how many stars are there ?")
        sheet = draw_results(session.bundle, picture, [one], panel_size=112)
        with pytest.raises(RequestError, match="only results of one picture can be drawn"):
            draw_results(session.bundle, picture, [two])
    assert sheet.width > 5 * 112
