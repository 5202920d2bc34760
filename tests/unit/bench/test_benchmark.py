"""The whole benchmark on a tiny bundle: its document, its limits, its table and its picture."""

from __future__ import annotations

import hashlib
import json
from importlib import import_module
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from PIL import Image

from feather_edge.bench import Settings, benchmark, scene_requests, table
from feather_edge.bench.energy import Meters
from feather_edge.bench.environment import describe_environment
from feather_edge.bench.plot import parts, require_plot, write_plot
from feather_edge.errors import BenchmarkError, RequestError
from feather_edge.pruning import Pruning
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime.backends import FakeBackend

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory

    from feather_edge.bench.report import Report
    from feather_edge.bundle import Bundle

PRUNING = Pruning(keep_ratio=(0.5, 0.25))


@pytest.fixture(scope="module")
def bundle(bundles: BundleFactory) -> Bundle:
    return bundles(num_layers=4, image_size=56, recipe=ExportRecipe(stages=(1, 3))).bundle


def run(bundle: Bundle, pruning: Pruning = PRUNING) -> Report:
    settings = Settings(pruning=pruning, num_threads=1, warmup=1, repeat=4, max_new_tokens=3)
    return benchmark(bundle, scene_requests(seed=0), settings)


@pytest.fixture(scope="module")
def report(bundle: Bundle) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("feather_edge.bench.rates.MIN_TIME_S", 0.0)
        return run(bundle)


# -- the document -----------------------------------------------------------------------------


def test_one_document(report: Report) -> None:
    document = json.loads(msgspec.json.encode(report))

    assert set(document) == {
        "environment", "settings", "floor", "session", "unpruned", "pruned", "ratio", "reason",
    }  # fmt: skip
    assert set(document["ratio"]) == {"ttft", "prefill", "flops", "tpot", "pairs"}
    assert document["settings"]["pruning"]["keep_ratio"] == [0.5, 0.25]
    assert document["unpruned"]["num_visual_tokens"] == [64, 64, 64]
    assert document["pruned"]["num_visual_tokens"] == [64, 32, 16]
    assert document["reason"] is None


def test_raw_samples_are_kept(report: Report) -> None:
    for summary in (report.unpruned, report.pruned):
        assert len(summary.timings) == 4
        for timing in summary.timings:
            assert len(timing.segment_ms) == 3
            assert len(timing.itl_ms) == timing.num_new_tokens - 1 <= 2
            stages_ms = timing.preprocess_ms + timing.vision_ms + timing.prefill_ms
            assert stages_ms <= timing.ttft_ms
    assert len(report.ratio.pairs["ttft"].ratios) == 4


def test_ratios_are_of_medians_beside_that_of_operations(report: Report) -> None:
    ratio, floor = report.ratio, report.floor

    assert ratio.ttft == report.pruned.ttft_ms / report.unpruned.ttft_ms
    assert ratio.prefill == report.pruned.prefill_ms / report.unpruned.prefill_ms
    assert ratio.flops == floor.pruned.prefill_flops / floor.unpruned.prefill_flops < 0.7


def test_the_session(report: Report) -> None:
    assert report.session.load_ms > 0
    assert report.session.peak_rss_mib > 10
    assert report.session.peak_device_mib is None


def test_nothing_to_prune_is_said_and_not_measured_twice(
    bundles: BundleFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feather_edge.bench.rates.MIN_TIME_S", 0.0)
    unsplit = bundles(num_layers=4, image_size=56, recipe=ExportRecipe(prune="none")).bundle

    report = run(unsplit)

    assert report.pruned is report.ratio is report.floor.pruned is None
    assert report.reason == "the bundle was exported without pruning stages"
    assert report.reason in table.verdict(report)
    assert len(report.unpruned.timings) == 4
    with pytest.raises(BenchmarkError, match="ttft_ratio was not measured, so it cannot be held"):
        report.check({"ttft_ratio": 1.0})


def test_energy_is_measured_where_there_is_a_sensor(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Joule:
        name = "one joule more at each look"
        looks = 0

        def joules(self) -> float:
            self.looks += 1
            return float(self.looks)

        def close(self) -> None:
            pass

    monkeypatch.setattr("feather_edge.bench.rates.MIN_TIME_S", 0.0)
    module = import_module("feather_edge.bench.benchmark")  # by name it is the function
    monkeypatch.setattr(module, "open_meters", lambda device: Meters([Joule()]))

    report = run(bundle)

    assert report.environment.energy_sensors == ("one joule more at each look",)
    assert report.unpruned.energy_j == report.pruned.energy_j == 1.0
    assert report.ratio.pairs["energy"].median == 1.0
    assert [row[0] for row in table.table_rows(report)][-1] == "energy per answer J"


# -- the environment --------------------------------------------------------------------------


def test_hashes_are_those_of_the_bundle(report: Report, bundle: Bundle) -> None:
    here = report.environment
    manifest = (bundle.path / "manifest.json").read_bytes()

    assert here.manifest_sha256 == hashlib.sha256(manifest).hexdigest()
    recipe = msgspec.json.encode(bundle.manifest.recipe)
    assert here.recipe_sha256 == hashlib.sha256(recipe).hexdigest()
    assert (here.backend, here.device, here.num_threads) == ("onnxruntime", "cpu", 1)
    assert "onnxruntime" in here.runtimes
    assert here.engines_sha256 is None


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_a_jetson_says_its_name_and_power_mode(bundle: Bundle, tmp_path: Path) -> None:
    write(
        tmp_path,
        **{"proc__device-tree__model": "NVIDIA Jetson Orin Nano Developer Kit\0"},
        proc__cpuinfo="model name\t: ARMv8 Processor rev 1\n",
        var__lib__nvpmodel__status="pmode:0002\n",
        sys__devices__system__cpu__cpu0__cpufreq__scaling_governor="schedutil\n",
    )

    here = describe_environment(
        bundle, FakeBackend(token_ids=[1]), target=None, num_threads=None, energy_sensors=(),
        root=tmp_path,
    )  # fmt: skip

    assert here.machine == "NVIDIA Jetson Orin Nano Developer Kit"
    assert (here.facts.power_mode, here.cpu_governor) == ("mode 2", "schedutil")


@pytest.mark.parametrize("has_name", [True, False])
def test_a_desktop_says_its_processor(bundle: Bundle, tmp_path: Path, has_name: bool) -> None:
    write(tmp_path, proc__cpuinfo="model name\t: AMD EPYC\n" if has_name else "processor: 0\n")

    here = describe_environment(
        bundle, FakeBackend(token_ids=[1]), target=None, num_threads=2, energy_sensors=("a",),
        root=tmp_path,
    )  # fmt: skip

    assert (here.machine == "AMD EPYC") == has_name
    assert here.machine
    assert here.facts.power_mode is here.cpu_governor is None
    assert here.num_threads == 2


# -- limits -----------------------------------------------------------------------------------


def test_limits_that_hold(report: Report) -> None:
    report.check({"ttft_ms": 1e9, "peak_rss_mib": 1e6, "prefill_ratio": 100})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ttft_ms", lambda r: r.pruned.ttft_ms),
        ("load_ms", lambda r: r.session.load_ms),
        ("tpot_ratio", lambda r: r.ratio.tpot),
    ],
)
def test_a_limit_that_does_not_hold(report: Report, name: str, value: object) -> None:
    with pytest.raises(BenchmarkError) as caught:
        report.check({"peak_rss_mib": 1e6, name: 1e-6})

    assert str(caught.value) == f"{name} is {value(report):.4g}, above its limit of 1e-06"


# -- for people -------------------------------------------------------------------------------


def test_the_table(report: Report) -> None:
    rows = {row[0]: row for row in table.table_rows(report)}

    assert all(len(row) == len(table.COLUMNS) for row in rows.values())
    _, unpruned, roof, _, _, ratio, spread = rows["prefill ms"]
    assert unpruned == pytest.approx(report.unpruned.prefill_ms, abs=0.5)
    assert roof == pytest.approx(report.floor.unpruned.prefill_roof_ms, abs=0.5)
    assert ratio == report.ratio.prefill
    pair = report.ratio.pairs["prefill"]
    assert spread == f"{pair.p5:.2f} to {pair.p95:.2f}"
    assert {"decoder_0 ms", "decoder_2 ms", "further token (TPOT) ms"} <= rows.keys()
    assert "energy per answer J" not in rows


def test_the_floor_s_table_shows_segments_again_where_they_have_fewer_rows(
    report: Report,
) -> None:
    names = [row[0] for row in table.floor_rows(report)]

    assert names == [
        "vision_encoder", "decoder_0", "decoder_1", "decoder_2", "decoder_1, pruned",
        "decoder_2, pruned",
    ]  # fmt: skip


def test_the_lines_around_the_tables(report: Report) -> None:
    assert "4 rounds after 1 to warm up" in table.headline(report)
    assert "1 threads" in table.headline(report)
    assert f"prefill takes {report.ratio.prefill:.2f} of its unpruned" in table.verdict(report)
    assert "64 > 32 > 16" in table.verdict(report)


def test_a_bar_adds_up_to_a_request_that_was_measured(report: Report) -> None:
    stages = parts(report.pruned)

    assert list(stages) == [
        "preprocess", "vision", "decoder_0", "decoder_1", "decoder_2", "prune", "other",
    ]  # fmt: skip
    assert all(ms >= 0 for ms in stages.values())
    times_ms = sorted(timing.ttft_ms for timing in report.pruned.timings)
    assert sum(stages.values()) == pytest.approx(times_ms[1])


def test_the_picture(report: Report, tmp_path: Path) -> None:
    write_plot(report, tmp_path / "bench.png")
    write_plot(report, tmp_path / "bench.svg")

    with Image.open(tmp_path / "bench.png") as picture:
        colours = {tuple(pixel) for pixel in np.asarray(picture.convert("RGB")).reshape(-1, 3)}
    assert {(230, 159, 0), (31, 119, 180), (95, 162, 208)} <= colours  # vision, two segments
    assert "<svg" in (tmp_path / "bench.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bench.jpeg2000", "must be a file named .png, .svg, .pdf"),
        ("nowhere/bench.png", "nowhere is no folder"),
    ],
)
def test_a_picture_that_cannot_be_written(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        require_plot(tmp_path / name)
