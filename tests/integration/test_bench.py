"""``feather-edge bench`` on a tiny bundle, and on engines of a fake device.

Nothing here says how fast anything is; see ``support.fake_tensorrt`` for what the fake proves.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from support.fake_engines import TARGET, bundle_with_engines

from feather_edge.cli import main
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime.session import Session

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory

    from feather_edge.bundle import Bundle

QUICK = ["--warmup", "0", "--repeat", "2", "--max-new-tokens", "3"]


@pytest.fixture
def bundle(bundles: BundleFactory) -> Bundle:
    return bundles(num_layers=4, recipe=ExportRecipe(opset="all")).bundle


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feather_edge.bench.rates.MIN_TIME_S", 0.0)
    monkeypatch.setattr("feather_edge.bench.cases.MAX_SIDE_PX", 64)


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


# -- graphs -----------------------------------------------------------------------------------


def test_tables_for_people(bundle: Bundle) -> None:
    result = invoke(bundle.path, *QUICK, "--threads", 1, "--keep-ratio", "0.5,0.25")

    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    for text in ("At least", "Medians", "vision_encoder", "first token (TTFT) ms", "roof",
                 "onnxruntime", "of its operations"):  # fmt: skip
        assert text in result.stdout


def test_one_json_document_and_a_picture(bundle: Bundle, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    plot = tmp_path / "bench.png"
    asked = ["--image", tmp_path / "a.png", "--prompt", "how many cups?"]

    result = invoke(
        bundle.path, *QUICK, *asked, "--prune", "fastv", "--seed", 4, "--plot", plot, "--json"
    )

    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert {"environment", "floor", "unpruned", "pruned", "ratio"} <= set(document)
    assert document["settings"]["pruning"]["criterion"] == "fastv"
    assert document["settings"]["pruning"]["seed"] == 4
    assert len(document["pruned"]["timings"]) == 2
    assert plot.stat().st_size > 1000


def test_no_request_starts_with_what_another_left(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached, generate = [], Session.generate

    def traced(session: Session, *arguments: Any, **options: Any) -> Any:
        result = generate(session, *arguments, **options)
        cached.append(result.num_cached_tokens)
        return result

    monkeypatch.setattr(Session, "generate", traced)
    assert invoke(bundle.path, *QUICK, "--threads", 1).exit_code == 0
    assert len(cached) > 4
    assert not any(cached)


def test_a_limit_ends_with_status_1_after_the_report(bundle: Bundle) -> None:
    result = invoke(bundle.path, *QUICK, "--fail-above", "ttft_ms=0.001", "--json")

    assert result.exit_code == 1
    assert json.loads(result.stdout)["ratio"]["flops"] < 1
    assert result.stderr.startswith("Error: ttft_ms is ")
    assert result.stderr.count("\n") == 1


def test_a_soak(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feather_edge.bench.soak.MAX_GROWTH_MIB", 1e3)  # a second is all warm-up

    result = invoke(bundle.path, "--soak", "1s", "--threads", 1)

    assert result.exit_code == 0, result.output
    assert " answered, " in result.stdout
    assert "compared with a fresh session's, 0 different" in result.stdout


# -- engines ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("trt")
def test_engines(bundle: Bundle, tmp_path: Path) -> None:
    bundle = bundle_with_engines(bundle, tmp_path / "bundle", opset=18)

    result = invoke(bundle.path, *QUICK, "--backend", "tensorrt", "--target", TARGET, "--json")

    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    here = document["environment"]
    assert (here["backend"], here["device"], here["target"]) == ("tensorrt", "cuda", TARGET)
    records = sorted((bundle.path / "engines" / TARGET).glob("*.json"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in records)).hexdigest()
    assert here["engines_sha256"] == digest
    assert document["session"]["peak_device_mib"] > 0
    assert document["floor"]["copy_gbytes_per_s"] is None
    assert document["floor"]["pruned"]["ttft_roof_ms"] is None
    assert 0 < document["ratio"]["flops"] < 1
    assert all(ms > 0 for ms in document["pruned"]["segment_ms"])


@pytest.mark.usefixtures("trt")
def test_the_only_target_is_named_in_the_report(bundle: Bundle, tmp_path: Path) -> None:
    bundle = bundle_with_engines(bundle, tmp_path / "bundle", opset=18)

    result = invoke(bundle.path, *QUICK, "--backend", "tensorrt")

    assert result.exit_code == 0, result.output
    assert "tensorrt" in result.stdout
    assert "on the device" in result.stdout


@pytest.mark.usefixtures("trt")
def test_engines_have_no_threads_to_choose(bundle: Bundle, tmp_path: Path) -> None:
    bundle = bundle_with_engines(bundle, tmp_path / "bundle", opset=18)

    result = invoke(bundle.path, "--backend", "tensorrt", "--threads", 2)

    assert result.exit_code == 1
    assert "threads 2 are of the CPU, but backend tensorrt runs on the GPU" in result.stderr


@pytest.mark.usefixtures("trt")
def test_threads_share_a_session_on_a_device(bundle: Bundle, tmp_path: Path) -> None:
    """The fake device finds memory that is used by two at once, or never given back."""
    bundle = bundle_with_engines(bundle, tmp_path / "bundle", opset=18)
    pictures = [
        np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        for seed in range(6)
    ]

    def ask(session: Session, image: np.ndarray) -> tuple[int, ...]:
        return session.generate(image, "hi", max_new_tokens=4).token_ids

    with Session.open(bundle, backend="onnxruntime", num_threads=1) as session:
        expected = [ask(session, image) for image in pictures]
    with Session.open(bundle, backend="tensorrt") as session, ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda image: ask(session, image), pictures))
    assert found == expected


@pytest.mark.usefixtures("trt")
def test_a_soak_of_engines_leaves_nothing_on_the_device(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures and ratios beyond the fake engines' limits come up, and are refused."""
    monkeypatch.setattr("feather_edge.bench.soak.MAX_GROWTH_MIB", 1e3)
    bundle = bundle_with_engines(bundle, tmp_path / "bundle", opset=18)

    result = invoke(bundle.path, "--soak", "2s", "--backend", "tensorrt", "--json")

    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["num_requests"]["answered"] > 0
    assert report["different"] == []
    assert report["footprints"][-1]["device_mib"] > 0
