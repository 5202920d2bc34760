from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from feather_edge.errors import RequestError
from feather_edge.evaluate.cost import prefill_flops
from feather_edge.evaluate.plots import pareto_front, write_plots
from feather_edge.evaluate.records import Conditions, Record
from feather_edge.evaluate.report import COLUMNS, table_rows, write_report
from feather_edge.evaluate.statistics import wilson_interval
from feather_edge.evaluate.summary import Evaluation, summarise
from feather_edge.evaluate.tasks import Question, Sample, Task
from feather_edge.inspection import describe

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory

CONDITIONS = Conditions(
    feather_edge_version="1", bundle_source="tiny", bundle_sha256="0", stages=(1, 2),
    backend="auto", task="scenes", task_digest="test", budget="equal",
    box_format="location-tokens", stride=3, selection="fill", seed=0,
)  # fmt: skip
TASK = Task(
    name="scenes", digest="test",
    samples=(Sample(name="test/0", image=np.zeros((2, 2, 3), np.uint8), questions=(
        Question(text="?", answer="red", topic="colour"),)),),
)  # fmt: skip
KEYS = [("none", 1.0), ("feather", 0.5)]


def record(method: str, kind: str, score: float, counts: tuple[int, ...]) -> Record:
    return Record(
        sample="test/0", question=0, kind=kind, method=method,  # type: ignore[arg-type]
        keep_ratio=dict(KEYS)[method], text="", score=score, is_right=score >= 0.5,
        num_text_tokens=8, num_visual_tokens=counts, kept_row=0.25, ttft_ms=2.0,
    )  # fmt: skip


def evaluation(bundles: BundleFactory, *, with_places: bool = True) -> Evaluation:
    records = []
    for method, counts, iou in (("none", (16, 16, 16), 0.9), ("feather", (16, 8, 4), 0.4)):
        records += [record(method, "coarse", score, counts) for score in (1.0, 0.0)]
        records += [record(method, "localisation", iou, counts)] * with_places
    bundle = bundles(num_layers=4).bundle
    return summarise(bundle, CONDITIONS, records, task=TASK, keys=KEYS)


def test_rows_say_what_the_records_say(bundles: BundleFactory) -> None:
    result = evaluation(bundles)
    none, feather = result.rows
    assert (result.num_localisation, result.num_coarse) == (1, 2)
    assert (none.localisation_acc, none.mean_iou, none.coarse_acc) == (1.0, 0.9, 0.5)
    assert (feather.localisation_acc, feather.mean_iou) == (0.0, 0.4)
    assert feather.num_visual_tokens == (16, 8, 4)
    assert none.flops_ratio == 1.0
    bundle = bundles(num_layers=4).bundle
    expected = prefill_flops(bundle, (16, 8, 4), 8) / prefill_flops(bundle, (16, 16, 16), 8)
    assert feather.flops_ratio == pytest.approx(expected)
    assert feather.topic_acc == {"colour": pytest.approx(1 / 3)}
    assert feather.ci95.coarse_acc == wilson_interval(1, 2)


def test_json_has_the_promised_keys_and_no_others(bundles: BundleFactory) -> None:
    document = evaluation(bundles, with_places=False).to_dict()
    assert set(document) == {"task", "num_samples", "rows"}
    for row in document["rows"]:
        assert set(row) == {
            "method", "keep_ratio", "flops_ratio", "localisation_acc", "coarse_acc", "ci95",
            "mean_kept_row",
        }  # fmt: skip
        assert row["localisation_acc"] is None
        assert row["ci95"]["localisation_acc"] is None
        assert len(row["ci95"]["coarse_acc"]) == 2


def test_flops_are_those_of_inspect(bundles: BundleFactory) -> None:
    bundle = bundles(num_layers=4).bundle
    prefill = describe(bundle, prompt_tokens=9).prefill
    counts = [segment.num_visual_tokens for segment in prefill.segments]
    assert prefill_flops(bundle, counts, 9) == prefill.flops


def test_the_report_holds_every_row(bundles: BundleFactory, tmp_path: Path) -> None:
    result = evaluation(bundles)
    write_report(result, tmp_path, plots=[tmp_path / "accuracy-flops.png"])
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| feather | 0.5 | 16>8>4 |" in text
    assert "| feather | 0.5 | 0.333 |" in text
    assert "![accuracy-flops](accuracy-flops.png)" in text
    assert "every method keeps as many tokens at every stage as FEATHER" in text
    assert all(len(row) == len(COLUMNS) for row in table_rows(result))
    written = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert written == msgspec.to_builtins(result) | {
        "rows": json.loads(msgspec.json.encode(result.rows)),
        "conditions": json.loads(msgspec.json.encode(result.conditions)),
    }


def test_wilson_stays_honest_at_the_ends() -> None:
    low, high = wilson_interval(10, 10)
    assert 0.7 < low < 0.73
    assert math.isclose(high, 1.0)
    assert wilson_interval(0, 10)[0] == pytest.approx(0)
    assert wilson_interval(0, 10)[1] == pytest.approx(1 - low)


def test_the_pareto_front_is_what_nothing_beats() -> None:
    points = [(1.0, 0.9), (0.5, 0.8), (0.5, 0.7), (0.7, 0.75), (0.2, 0.1), (0.9, 0.9)]
    assert [points[i] for i in pareto_front(points)] == [(0.2, 0.1), (0.5, 0.8), (0.9, 0.9)]
    assert pareto_front([]) == []


@pytest.mark.parametrize("with_places", [True, False])
def test_plots_are_drawn(bundles: BundleFactory, tmp_path: Path, with_places: bool) -> None:
    pytest.importorskip("matplotlib")
    paths = write_plots(evaluation(bundles, with_places=with_places), tmp_path)
    assert [path.name for path in paths] == ["accuracy-flops.png", "accuracy-ttft.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_without_matplotlib_plots_say_what_to_install(
    bundles: BundleFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feather_edge.evaluate.plots.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"pip install 'feather-edge\[viz\]'"):
        write_plots(evaluation(bundles), tmp_path)
