"""The evidence of the pretrained decoder, on bundles of a few thousand weights."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from feather_edge.evaluate.records import read_records
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime.session import Session

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory

pytest.importorskip("torch")
pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("_scene_vlm_on_path")

PLACES = {"feather": (1, 2), "layer-3": (1,), "feather-int8": (1, 2)}


@pytest.fixture
def answers(bundles: BundleFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return two scenes for three of the runs, whose bundles are tiny; nothing is asked yet."""
    from evidence_runs import RUNS, Answers, asked

    generate = Session.generate

    def short(self: Session, *args: Any, **options: Any) -> Any:
        return generate(self, *args, **options | {"max_new_tokens": 1})

    monkeypatch.setattr(Session, "generate", short)

    checkpoint = bundles.checkpoint(num_layers=4)
    (tmp_path / "bundles").mkdir()
    for name in list(RUNS):
        if name not in PLACES:
            monkeypatch.delitem(RUNS, name)
            continue
        recipe = msgspec.structs.replace(RUNS[name].recipe, stages=PLACES[name])
        monkeypatch.setitem(RUNS, name, dataclasses.replace(RUNS[name], recipe=recipe))
        made = bundles.export(checkpoint, recipe=recipe)
        (tmp_path / "bundles" / name).symlink_to(made.bundle.path)
    return Answers(checkpoint=checkpoint, output=tmp_path, task=asked("development", 2))


def test_quantised_runs_differ_in_the_decoder_alone():
    from evidence_runs import RUNS, runs_of

    plain = ExportRecipe()
    for run in RUNS.values():
        if run.float_run is None:
            continue
        base = RUNS[run.float_run]
        assert run.precision != base.precision == "fp32"
        assert run.recipe.vision_precision == "fp32"
        same = {"precision": plain.precision, "vision_precision": plain.vision_precision}
        assert msgspec.structs.replace(run.recipe, **same) == base.recipe
        assert run.comparison == base.comparison
    for precision in ("fp32", "int8", "int4"):
        names = runs_of(precision)
        assert [RUNS[name].asks_unpruned for name in names] == [True] + [False] * (len(names) - 1)


def test_two_questions_a_scene_with_every_kind_in_turn():
    from evidence_runs import asked

    task = asked("development", 8)
    assert task.digest == "development-two"
    kinds = [[question.kind for question in sample.questions] for sample in task.samples]
    assert all(each[-1] == "coarse" for each in kinds)
    assert all(each.count("coarse") == 1 for each in kinds)
    topics = {sample.questions[-1].topic for sample in task.samples}
    assert topics == {"colour", "shape", "presence", "count"}


def test_the_unpruned_model_is_asked_once_and_stands_in_every_comparison(
    answers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import evidence_page
    from evidence_measures import measure_overlaps
    from evidence_page import page

    monkeypatch.setattr(evidence_page, "TABLES", {"Both": ("feather", "layer-3")})
    monkeypatch.setattr(evidence_page, "PAIRS", evidence_page.PAIRS[:1])

    assert answers.num_complete(["feather", "layer-3"]) == 0
    asked_first = list(answers.ask(["feather"]))
    assert asked_first == [("feather", 2)]
    list(answers.ask(["layer-3", "feather-int8"]))
    single = read_records(answers.folder / "layer-3")
    assert {record.method for record in single}.isdisjoint({"none"})
    found = answers.evaluations(["feather", "layer-3"], 2)
    full = found["layer-3"].rows[0]
    assert (full.method, full.flops_ratio) == ("none", 1.0)
    assert len(full.num_visual_tokens) == 2
    assert len(set(full.num_visual_tokens)) == 1
    assert full.localisation_acc == found["feather"].rows[0].localisation_acc
    assert all(row.flops_ratio < 1 for row in found["layer-3"].rows[1:])

    overlaps = measure_overlaps(answers)
    shares = overlaps.shares["feather-int8"]["feather 0.6"]
    assert len(shares) == 2
    assert all(0.5 < share <= 1 for share in shares)
    text = page(answers, None, overlaps, None)
    assert "The first 2 of the development scenes, float32." in text
    assert "| before 3 | RoPE-free | 0.25 |" in text
    row = "| before 8 and 16, union with the grid | FEATHER | 0.6 | int8 |"
    assert row in text
    assert row in page(answers, None, None, None)

    # The page covers what all runs have answered, and a stopped run goes on where it was.
    path = answers.folder / "layer-3" / "samples.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    assert answers.num_complete(["feather"]) == 2
    assert answers.num_complete(["feather", "layer-3"]) == 1
    assert "The first 1 of the development scenes, float32." in page(answers, None, overlaps, None)
    list(answers.ask(["layer-3"]))
    assert len(read_records(answers.folder / "layer-3")) == len(lines)


def test_an_even_split_says_nothing_and_an_uneven_one_does():
    from evidence_page import sign_test

    assert sign_test(3, 3) == sign_test(0, 0) == 1.0
    assert sign_test(5, 0) == sign_test(0, 5) == 2 / 2**5
    assert sign_test(11, 1) == pytest.approx(2 * 13 / 2**12)


def test_times_are_ratios_to_the_unpruned_request_of_the_same_round(
    answers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import evidence_measures

    monkeypatch.setattr(evidence_measures, "ROUNDS", 2)
    monkeypatch.setattr(evidence_measures, "WARMUP", 0)
    times = evidence_measures.measure_times(answers)
    assert set(times.unpruned_ms) == set(times.ratios) == {"feather", "layer-3"}
    assert set(times.ratios["feather"]) == {"feather 0.3", "feather 0.6"}
    pair = times.ratios["layer-3"]["fastv 0.25"]
    assert len(pair.ratios) == 2
    assert min(pair.ratios) > 0
