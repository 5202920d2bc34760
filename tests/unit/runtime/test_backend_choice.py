from __future__ import annotations

import dataclasses
import shutil
import sys
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from feather_edge import Session
from feather_edge.bench import picture_requests, scene_requests
from feather_edge.bundle import Bundle
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime.backend_choice import (
    FILE,
    FORMAT_VERSION,
    BackendTable,
    BackendTime,
    best_first,
    write_backend_table,
)
from feather_edge.runtime.backends import create_backend
from feather_edge.runtime.fingerprint import Fingerprint, fingerprint
from feather_edge.tune.backends import measure_backends

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory

PICTURE = np.zeros((40, 60, 3), np.uint8)


@pytest.fixture
def bundle(bundles: BundleFactory, tmp_path: Path) -> Bundle:
    exported = bundles(num_layers=4, image_size=56, recipe=ExportRecipe(stages=(1, 3)))
    return Bundle.open(shutil.copytree(exported.bundle.path, tmp_path / "bundle"))


def table(*times: tuple[Fingerprint, float]) -> BackendTable:
    return BackendTable(
        format_version=FORMAT_VERSION,
        command="feather-edge tune bundle --budget-ttft-ms 5",
        measured_at="2026-01-01T00:00:00+00:00",
        warmup=1,
        repeat=2,
        times=tuple(BackendTime(fingerprint=each, ttft_ms=ttft_ms) for each, ttft_ms in times),
    )


def measured(bundle: Bundle) -> BackendTable:
    """Return a table in which openvino is the faster one."""
    fast, slow = (
        fingerprint(bundle, create_backend(name)) for name in ("openvino", "onnxruntime")
    )
    return table((fast, 3.5), (slow, 4.0))


def test_without_a_table_it_is_onnxruntime_and_nothing_is_said(bundle: Bundle) -> None:
    with Session.open(bundle) as session:
        assert session.backend.name == "onnxruntime"
        assert session.notes == ()


def test_the_fastest_is_taken_and_the_result_says_why(bundle: Bundle) -> None:
    write_backend_table(bundle.path, measured(bundle))

    with Session.open(bundle) as session:
        result = session.generate(PICTURE, "where is it ?", max_new_tokens=1)

    assert result.backend == "openvino"
    assert result.notes == (
        (
            "backend openvino, by median times to the first token measured here: openvino 3.5 ms, "
            "onnxruntime 4.0 ms"
        ),
    )


def timed(backend: str, ttft_ms: float, tpot_ms: float | None) -> BackendTime:
    measured = Fingerprint(
        bundle="",
        engines=None,
        feather_edge="",
        backend=backend,
        device="cpu",
        library=None,
        machine="",
        power_mode=None,
        num_cores=1,
        num_threads=None,
    )
    return BackendTime(fingerprint=measured, ttft_ms=ttft_ms, tpot_ms=tpot_ms)


@pytest.mark.parametrize(
    ("tpot_ms", "slower_ttft_ms", "best"),
    [
        ((6.0, 2.0), 104.0, "slower"),  # alike to the first token, so the others decide
        ((6.0, 2.0), 106.0, "faster"),
        ((2.0, 6.0), 104.0, "faster"),
        ((None, None), 104.0, "faster"),
    ],
)
def test_further_tokens_decide_where_first_ones_are_alike(
    tpot_ms: tuple[float | None, float | None], slower_ttft_ms: float, best: str
) -> None:
    times = [timed("slower", slower_ttft_ms, tpot_ms[1]), timed("faster", 100.0, tpot_ms[0])]
    assert best_first(times)[0].fingerprint.backend == best
    assert len(best_first(times)) == 2


def test_the_reason_tells_both_times() -> None:
    found = table()
    found = msgspec.structs.replace(
        found, times=(timed("openvino", 20.04, 6.0), timed("onnxruntime", 25.0, 2.0))
    )
    assert found.reason == (
        "median times to the first token and of each further one measured here: "
        "openvino 20.0 and 6.0 ms, onnxruntime 25.0 and 2.0 ms"
    )


def test_a_backend_asked_for_by_name_is_that(bundle: Bundle) -> None:
    write_backend_table(bundle.path, measured(bundle))
    backend = create_backend("onnxruntime", bundle)
    assert (backend.name, backend.notes) == ("onnxruntime", ())


def test_a_stale_table_is_told_and_not_trusted(bundle: Bundle) -> None:
    here = fingerprint(bundle, create_backend("openvino"))
    elsewhere = msgspec.structs.replace(here, machine="another machine")
    file = write_backend_table(bundle.path, table((elsewhere, 1.0)))

    backend = create_backend("auto", bundle)

    assert backend.name == "onnxruntime"
    assert backend.notes == (
        (
            f"backend onnxruntime, since {file} does not hold here: it was measured with machine "
            f"another machine, and here it is {here.machine}; measure again with: "
            f"feather-edge tune bundle --budget-ttft-ms 5"
        ),
    )


def test_threads_are_part_of_what_was_measured(bundle: Bundle) -> None:
    write_backend_table(bundle.path, measured(bundle))
    backend = create_backend("auto", bundle, num_threads=1)
    assert backend.name == "onnxruntime"
    assert "num-threads None, and here it is 1" in backend.notes[0]


def test_a_winner_that_is_not_installed_any_more(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_backend_table(bundle.path, measured(bundle))
    monkeypatch.setitem(sys.modules, "openvino", None)
    backend = create_backend("auto", bundle)
    assert backend.name == "onnxruntime"
    assert backend.notes[0].startswith(
        "backend onnxruntime, though openvino was measured faster: backend openvino is not"
    )


@pytest.mark.parametrize("text", ["", "[]", '{"format_version": 1}', "\0"])
def test_a_damaged_table_is_told(bundle: Bundle, text: str) -> None:
    file = bundle.path / FILE
    file.parent.mkdir()
    file.write_text(text)
    backend = create_backend("auto", bundle)
    assert backend.name == "onnxruntime"
    assert f"since {file} is no table of backends: " in backend.notes[0]
    assert "\n" not in backend.notes[0]


def test_another_version_is_told(bundle: Bundle) -> None:
    newer = msgspec.structs.replace(measured(bundle), format_version=FORMAT_VERSION + 1)
    write_backend_table(bundle.path, newer)
    (note,) = create_backend("auto", bundle).notes
    told = f"format version {FORMAT_VERSION + 1}; this feather-edge reads version {FORMAT_VERSION}"
    assert f"{told}; measure again with: " in note


def test_backends_are_measured_against_one_another(bundle: Bundle) -> None:
    found = measure_backends(
        bundle, scene_requests(seed=0), warmup=1, repeat=2, command="feather-edge tune"
    )
    assert {time.fingerprint.backend for time in found.times} >= {"onnxruntime", "openvino"}
    assert all(time.tpot_ms is not None for time in found.times)
    write_backend_table(bundle.path, found)
    backend = create_backend("auto", bundle)
    assert backend.name == found.best
    assert found.reason in backend.notes[0]


def test_a_missing_backend_is_left_out(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    found = measure_backends(
        bundle, scene_requests(seed=0), warmup=0, repeat=1, command="feather-edge tune"
    )
    assert [time.fingerprint.backend for time in found.times] == ["onnxruntime"]


def test_a_prompt_that_almost_fills_the_model_is_measured(bundle: Bundle) -> None:
    requests = picture_requests(PICTURE, "what is it ?", seed=0)
    (first,) = requests(0, 1)
    with Session.open(bundle) as session:
        answer = session.generate(first.image, first.prompt, max_new_tokens=1)
    manifest = msgspec.structs.replace(bundle.manifest, max_positions=answer.num_prompt_tokens + 2)
    full = dataclasses.replace(bundle, manifest=manifest)
    found = measure_backends(full, requests, warmup=0, repeat=1, command="feather-edge tune")
    assert {time.fingerprint.backend for time in found.times} >= {"onnxruntime", "openvino"}
