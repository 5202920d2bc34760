from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from feather_edge.errors import RequestError
from feather_edge.evaluate.comparison import METHODS, Comparison, equal_shares
from feather_edge.evaluate.cost import prefill_flops
from feather_edge.evaluate.evaluation import evaluate, gather
from feather_edge.evaluate.tasks import Question, Sample, Task
from feather_edge.pruning import VisualSpan
from feather_edge.pruning.forecast import forecast
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime.session import Session, default_pruning
from feather_edge.runtime.spans import prompt_layout, typical_layout

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory

IMAGE = np.full((20, 20, 3), 90, np.uint8)
WORD = Question(text="hi", answer="red")
PLACE = Question(text="hi", box=(1, 2, 3, 4))


def task(*questions: Question) -> Task:
    sample = Sample(name="one", image=IMAGE, questions=questions)
    return Task(name="asked.jsonl", digest="0", samples=(sample,))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"methods": ("best",)}, "method 'best' is unknown; choose all or some of feather,"),
        ({"methods": ("none",)}, "unpruned is always there"),
        ({"methods": ()}, "methods are (); give at least one"),
        ({"keep_ratios": (0.5, 0.5)}, "keep ratios are (0.5, 0.5); give at least one, each"),
        ({"budget": "fair"}, "budget 'fair' is unknown; choose equal or own"),
    ],
)
def test_a_comparison_that_cannot_be(options: dict[str, Any], text: str) -> None:
    with pytest.raises(RequestError) as error:
        Comparison(**options)
    assert text in str(error.value)


@pytest.mark.parametrize("ratio", [0.75, 0.5, 0.3, 0.1])
def test_equal_budgets_cost_the_same_as_feather(bundles: BundleFactory, ratio: float) -> None:
    bundle = bundles(num_layers=4).bundle
    height, width = bundle.manifest.image.grid
    span = VisualSpan(start=2, height=height, width=width)
    layout = prompt_layout(bundle.manifest.rotary, span.num_tokens + 9, [span])
    feather = dataclasses.replace(
        default_pruning(bundle), criterion="feather", keep_ratio=(ratio,)
    )
    counts = forecast(feather, bundle.schedule, layout)
    prunings = Comparison(keep_ratios=(ratio,)).prunings(bundle)
    assert next(iter(prunings)) == ("none", 1.0)
    inside = {key: pruning for key, pruning in prunings.items() if "pre-" not in key[0]}
    del inside[("none", 1.0)]
    assert {tuple(forecast(p, bundle.schedule, layout)) for p in inside.values()} == {
        tuple(counts)
    }
    assert [key[0] for key in inside] == list(METHODS[: len(inside)])


@pytest.mark.parametrize("ratio", [0.75, 0.3])
def test_methods_before_the_decoder_cost_the_same(bundles: BundleFactory, ratio: float) -> None:
    bundle = bundles(num_layers=6, image_size=56, recipe=ExportRecipe(stages=(2, 4))).bundle
    layout = typical_layout(bundle.manifest)
    prunings = Comparison(keep_ratios=(ratio,)).prunings(bundle)
    costs = {
        name: prefill_flops(bundle, forecast(pruning, bundle.schedule, layout), 32)
        for (name, _), pruning in prunings.items()
    }
    names = [name for name in METHODS if name.startswith("pre-")]
    assert names == ["pre-uniform", "pre-random", "pre-divprune", "pre-dart", "pre-cdpruner",
                     "pre-pooling"]  # fmt: skip
    for name in names:
        tolerance = 0.1 if name == "pre-pooling" else 0.02  # of 64 tokens; cells are rows of them
        assert costs[name] == pytest.approx(costs["feather"], rel=tolerance)
        assert prunings[(name, ratio)].criterion == "none"
    assert costs["feather"] < costs["none"]


def test_the_recipe_itself_is_one_row(bundles: BundleFactory) -> None:
    recipe = ExportRecipe(stages=(1, 2), keep_ratio=(0.5, 0.25), pre_prune="dart")
    bundle = bundles(num_layers=4, recipe=recipe).bundle
    prunings = Comparison(methods=("recipe", "fastv"), keep_ratios=(0.3, 0.1)).prunings(bundle)
    assert list(prunings) == [("none", 1.0), ("recipe", 0.5), ("fastv", 0.3), ("fastv", 0.1)]
    assert prunings[("recipe", 0.5)] == default_pruning(bundle)
    unsplit = bundles(num_layers=4, recipe=ExportRecipe(stages=(), prune="none")).bundle
    assert len(Comparison(methods=("recipe",)).prunings(unsplit)) == 2


def test_own_budgets_take_the_ratio_as_it_is(bundles: BundleFactory) -> None:
    bundle = bundles(num_layers=4).bundle
    prunings = Comparison(methods=("fastv",), budget="own", seed=7).prunings(bundle)
    assert prunings[("fastv", 0.5)].keep_ratio == (0.5,)
    assert {pruning.seed for pruning in prunings.values()} == {7}


def test_more_stages_than_the_paper_keep_powers(bundles: BundleFactory) -> None:
    recipe = ExportRecipe(stages=(1, 2, 3), keep_ratio=(0.5, 0.4, 0.3))
    bundle = bundles(num_layers=4, recipe=recipe).bundle
    assert equal_shares(bundle, default_pruning(bundle), 0.5) == (0.5, 0.25, 0.125)


def test_only_what_is_missing_is_asked(
    bundles: BundleFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bundles(num_layers=4).bundle.path
    asked, seen = [], []
    generate = Session.generate

    def counted(self: Session, *args: Any, **options: Any) -> Any:
        asked.append(options["pruning"].criterion)
        return generate(self, *args, **options, max_new_tokens=2)

    monkeypatch.setattr(Session, "generate", counted)
    small = Comparison(methods=("feather",), keep_ratios=(0.5,))
    large = Comparison(methods=("feather", "uniform"), keep_ratios=(0.5,))
    evaluate(folder, task(WORD), small, output=tmp_path)
    assert asked == ["none", "feather"]
    progress = lambda done, total: seen.append((done, total))  # noqa: E731
    result = evaluate(folder, task(WORD), large, output=tmp_path, on_progress=progress)
    assert asked == ["none", "feather", "uniform"]
    assert seen == [(0, 1), (1, 1)]
    assert [row.method for row in result.rows] == ["none", "feather", "uniform"]
    evaluate(folder, task(WORD), large, output=tmp_path)
    assert len(asked) == 3
    assert [row.method for row in evaluate(folder, task(WORD), small, output=tmp_path).rows] == [
        "none", "feather",
    ]  # fmt: skip


def test_boxes_of_a_model_without_location_tokens_need_a_format(
    bundles: BundleFactory, tmp_path: Path
) -> None:
    folder = bundles(num_layers=4).bundle.path
    with pytest.raises(RequestError, match="say how the model writes boxes with --box-format"):
        evaluate(folder, task(PLACE), Comparison(), output=tmp_path)


def test_answers_can_be_gathered_without_the_unpruned_model(
    bundles: BundleFactory, tmp_path: Path
) -> None:
    folder = bundles(num_layers=4).bundle.path
    comparison = Comparison(methods=("uniform",), keep_ratios=(0.5,))
    gathered = gather(folder, task(WORD), comparison, output=tmp_path, is_unpruned_asked=False)
    assert gathered.keys == (("uniform", 0.5),)
    assert [record.trial for record in gathered.records] == [("one", 0, "uniform", 0.5)]
    more = gather(folder, task(WORD), comparison, output=tmp_path)
    assert more.keys == (("none", 1.0), ("uniform", 0.5))
    assert more.records[1] == gathered.records[0]
    assert more.conditions == gathered.conditions


def test_an_unsplit_bundle_has_nothing_to_compare(bundles: BundleFactory, tmp_path: Path) -> None:
    bundle = bundles(num_layers=4, recipe=ExportRecipe(stages=(), prune="none")).bundle
    with pytest.raises(RequestError, match="has no pruning stages, so only methods before the"):
        evaluate(bundle.path, task(WORD), Comparison(), output=tmp_path)
    before = Comparison(methods=("pre-dart",), keep_ratios=(0.25,), budget="own")
    none, dart = evaluate(bundle.path, task(WORD), before, output=tmp_path).rows
    assert none.num_visual_tokens == (16,)
    assert dart.num_visual_tokens == (4,)
    assert dart.flops_ratio < none.flops_ratio == 1


@pytest.mark.parametrize("method", ["random", "pre-random"])
def test_random_keeps_other_tokens_of_another_picture(
    bundles: BundleFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    seeds = []
    generate = Session.generate

    def noted(self: Session, *args: Any, **options: Any) -> Any:
        seeds.append(options["pruning"].seed)
        return generate(self, *args, **options, max_new_tokens=1)

    monkeypatch.setattr(Session, "generate", noted)
    samples = tuple(Sample(name=name, image=IMAGE, questions=(WORD,)) for name in "ab")
    two = Task(name="asked.jsonl", digest="0", samples=samples)
    only = Comparison(methods=(method,), keep_ratios=(0.5,))
    evaluate(bundles(num_layers=4).bundle.path, two, only, output=tmp_path)
    first, second = seeds[1::2]
    assert seeds[0::2] == [0, 0]
    assert first != second
