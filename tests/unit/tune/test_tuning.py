"""The ladder, the search, and what they lead to; times are made up where they decide."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from feather_edge.bench import scene_requests
from feather_edge.bundle import Bundle
from feather_edge.errors import RequestError
from feather_edge.evaluate.records import Record
from feather_edge.evaluate.tasks import Question, Sample, Task
from feather_edge.recipes import ExportRecipe
from feather_edge.tune import Requirement, tune
from feather_edge.tune.ladder import ladder, own_method
from feather_edge.tune.search import load_halves

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.bundles import BundleFactory

IMAGE = np.full((20, 20, 3), 90, np.uint8)
REQUESTS = scene_requests(seed=0)


@pytest.fixture
def folder(bundles: BundleFactory, tmp_path: Path) -> Path:
    exported = bundles(num_layers=4, image_size=56, recipe=ExportRecipe(stages=(1, 3)))
    return shutil.copytree(exported.bundle.path, tmp_path / "bundle")


def words(name: str, count: int) -> Task:
    question = Question(text="hi", answer="red")
    samples = [
        Sample(name=f"{name}/{i}", image=IMAGE, questions=(question,)) for i in range(count)
    ]
    return Task(name="words", digest=name, samples=tuple(samples))


def requirement(min_accuracy: float, *, count: int = 10) -> Requirement:
    return Requirement(
        min_accuracy=min_accuracy,
        of="both",
        development=words("development", count),
        test=words("test", count),
    )


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[tuple[str, float], int]], list[Any]]:
    """Make the first so many answers of each method and ratio right; returns what was asked."""

    def judge(num_right: dict[tuple[str, float], int]) -> list[Any]:
        asked: list[Any] = []

        def ask(_self: Any, _image: Any, question: Any, trial: Any, pruning: Any) -> Record:
            sample, number, method, ratio = trial
            asked.append((sample, method, ratio))
            shares = (1.0, 1.0) if method == "none" else pruning.keep_ratio
            return Record(
                sample=sample,
                question=number,
                kind=question.kind,
                method=method,
                keep_ratio=ratio,
                text="",
                score=0.0,
                is_right=int(sample.split("/")[1]) < num_right.get((method, ratio), 0),
                num_text_tokens=10,
                num_visual_tokens=(64, *(round(64 * share) for share in shares)),
                kept_row=0.5,
                ttft_ms=1.0,
            )

        monkeypatch.setattr("feather_edge.evaluate.evaluation._Examiner._ask", ask)
        return asked

    return judge


def test_a_ladder_falls_and_costs_what_feather_costs(folder: Path) -> None:
    rungs = ladder(Bundle.open(folder), "fastv", [0.25, 1.0, 0.5, 0.5])
    assert list(rungs) == [1.0, 0.5, 0.25]
    assert rungs[1.0].keep_ratio == (1.0, 1.0)
    assert {pruning.criterion for pruning in rungs.values()} == {"fastv"}


def test_a_ladder_before_an_unsplit_decoder(bundles: BundleFactory) -> None:
    recipe = ExportRecipe(stages=(), prune="none", pre_prune="dart")
    bundle = bundles(num_layers=4, image_size=56, recipe=recipe).bundle
    assert own_method(bundle) == "pre-dart"
    rungs = ladder(bundle, "pre-dart", [1.0, 0.5])
    assert [p.pre_keep_ratio for p in rungs.values()] == [1.0, 0.5]
    assert {p.criterion for p in rungs.values()} == {"none"}


def test_time_alone_is_measured_and_a_budget_chosen(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = tune(
        [folder],
        REQUESTS,
        budget_ttft_ms=1e9,
        keep_ratios=[0.5],
        warmup=1,
        repeat=2,
        command="feather-edge tune bundle",
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert [rung.keep_ratio for rung in report.calibration.rungs] == [1.0, 0.5]
    assert [rung.num_visual_tokens[0] for rung in report.calibration.rungs] == [64, 64]
    assert report.calibration.rungs[1].num_visual_tokens[1] < 64
    assert report.calibration.command == "feather-edge tune bundle"
    assert report.budget is not None
    assert report.budget["keep_ratio"] == 1.0
    assert report.search is None
    assert seen[-1] == (6, 6)
    assert (folder / "calibration" / "onnxruntime-cpu.json").is_file()


def test_the_cheapest_that_keeps_enough_is_chosen_and_reported_on_other_questions(
    folder: Path, judged: Callable[[dict[tuple[str, float], int]], list[Any]], tmp_path: Path
) -> None:
    asked = judged(
        {
            ("none", 1.0): 10,
            ("feather", 0.5): 10,
            ("feather", 0.25): 8,
            ("fastv", 0.5): 9,
            ("fastv", 0.25): 9,
        }
    )
    report = tune(
        [folder],
        REQUESTS,
        requirement=requirement(0.9),
        methods=["feather", "fastv"],
        keep_ratios=[0.5, 0.25],
        warmup=0,
        repeat=1,
        output=tmp_path / "answers",
    )
    assert report.search is not None
    assert report.method == "fastv"
    assert (report.search.chosen.method, report.search.chosen.keep_ratio) == ("fastv", 0.25)
    accepted = {(c.method, c.keep_ratio) for c in report.search.candidates if c.is_accepted}
    assert accepted == {("feather", 0.5), ("fastv", 0.5), ("fastv", 0.25)}
    assert [rung.keep_ratio for rung in report.calibration.rungs] == [1.0, 0.5, 0.25]
    assert [rung.accuracy for rung in report.calibration.rungs] == [
        {"coarse": 1.0}, {"coarse": 0.9}, {"coarse": 0.9},
    ]  # fmt: skip
    held_out = [each for each in asked if each[0].startswith("test/")]
    assert {each[1:] for each in held_out} == {("none", 1.0), ("fastv", 0.25)}
    assert report.search.kept == {"coarse": 0.9}
    assert 0 < report.search.chosen.visual_flops_saved < 1
    before = len(asked)
    tune(
        [folder], REQUESTS, requirement=requirement(0.9), methods=["feather", "fastv"],
        keep_ratios=[0.5, 0.25], warmup=0, repeat=1, output=tmp_path / "answers",
    )  # fmt: skip
    assert len(asked) == before


def test_schedules_are_told_apart(
    bundles: BundleFactory,
    tmp_path: Path,
    judged: Callable[[dict[tuple[str, float], int]], list[Any]],
) -> None:
    judged({("none", 1.0): 10, ("feather", 0.5): 10})
    folders = []
    for stages in ((2, 3), (1, 2)):
        exported = bundles(num_layers=4, image_size=56, recipe=ExportRecipe(stages=stages))
        folders.append(shutil.copytree(exported.bundle.path, tmp_path / str(stages[0])))
    report = tune(
        folders, REQUESTS, requirement=requirement(1), keep_ratios=[0.5], warmup=0, repeat=1
    )
    assert report.bundle == str(folders[1])
    assert not (folders[0] / "calibration").exists()
    assert report.search is not None
    assert [each.stages for each in report.search.candidates] == [(1, 2), (2, 3)]


def test_nothing_keeps_enough(
    folder: Path, judged: Callable[[dict[tuple[str, float], int]], list[Any]]
) -> None:
    judged({("none", 1.0): 10, ("feather", 0.5): 6})
    with pytest.raises(RequestError) as error:
        tune([folder], REQUESTS, requirement=requirement(0.9), keep_ratios=[0.5])
    assert "nothing keeps 90% of the unpruned accuracy on words; the best," in str(error.value)
    assert "feather at 0.5, keeps 60.0%" in str(error.value)
    assert not (folder / "calibration").exists()


def test_a_model_that_is_always_wrong_has_nothing_to_keep(
    folder: Path, judged: Callable[[dict[tuple[str, float], int]], list[Any]]
) -> None:
    judged({})
    with pytest.raises(RequestError, match="is right about no coarse question of words"):
        tune([folder], REQUESTS, requirement=requirement(0.9), keep_ratios=[0.5])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "nothing to tune for; give --budget-ttft-ms, --min-accuracy, or both"),
        ({"budget_ttft_ms": 0}, "budget 0 ms is no time"),
        ({"budget_ttft_ms": 5, "methods": ["recipe"]}, "method recipe is one request, no ladder"),
        ({"budget_ttft_ms": 5, "methods": ["feather", "fastv"]}, "1 bundles and 2 methods can"),
    ],
)
def test_what_cannot_be_tuned(folder: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(RequestError, match=text):
        tune([folder], REQUESTS, **options)


@pytest.mark.parametrize("share", [0, 1.1, float("nan")])
def test_an_accuracy_that_is_no_share(share: float) -> None:
    with pytest.raises(RequestError, match=r"it must be in \(0, 1\]"):
        requirement(share)


def test_halves_share_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    entries = [{"image": "a.png", "question": str(i), "answer": "x"} for i in range(5)]
    entries.append({"image": "a.png", "question": "where", "box": [1, 2, 3, 4]})
    file = tmp_path / "asked.json"
    file.write_text(json.dumps(entries), encoding="utf-8")
    first, second = load_halves(str(file), of="coarse")
    assert [[s.questions[0].text for s in half.samples] for half in (first, second)] == [
        ["0", "2", "4"], ["1", "3"],
    ]  # fmt: skip
    assert first.digest != second.digest
    with pytest.raises(RequestError, match="asked.json has too few localisation questions"):
        load_halves(str(file), of="localisation")
    scenes = load_halves("scenes", limit=2)
    assert [half.samples[0].name for half in scenes] == ["development/0", "test/0"]
    with pytest.raises(RequestError, match="split test has no effect: scenes are chosen on"):
        load_halves("scenes", split="test")
