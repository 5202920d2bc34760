"""Which keep ratio a deadline leads to, and when a table of times is not to be trusted."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from feather_edge import FakeBackend, Session
from feather_edge.bundle import Bundle
from feather_edge.errors import RequestError
from feather_edge.pruning import Pruning, Region
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime.calibration import (
    Calibration,
    Rung,
    read_calibration,
    write_calibration,
)
from feather_edge.runtime.fingerprint import fingerprint, machine_name

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory

PICTURE = np.full((20, 20, 3), 90, np.uint8)
TIMES = {1.0: 100.0, 0.5: 60.0, 0.25: 40.0}


@pytest.fixture
def bundle(bundles: BundleFactory, tmp_path: Path) -> Bundle:
    exported = bundles(num_layers=4, image_size=56, recipe=ExportRecipe(stages=(1, 3)))
    return Bundle.open(shutil.copytree(exported.bundle.path, tmp_path / "bundle"))


def calibration(bundle: Bundle, *, num_visual_tokens: int = 64) -> Calibration:
    return Calibration(
        format_version=1,
        command="feather-edge tune bundle --budget-ttft-ms 50",
        measured_at="2026-11-22T00:00:00+00:00",
        fingerprint=fingerprint(bundle, FakeBackend(token_ids=[300])),
        num_prompt_tokens=num_visual_tokens + 10,
        num_visual_tokens=num_visual_tokens,
        warmup=3,
        repeat=20,
        rungs=tuple(
            Rung(
                keep_ratio=ratio,
                pruning=Pruning(keep_ratio=(ratio, ratio)),
                num_visual_tokens=(64, int(64 * ratio), int(64 * ratio)),
                ttft_ms=p95 * 0.9,
                ttft_p95_ms=p95,
            )
            for ratio, p95 in TIMES.items()
        ),
    )


def session(bundle: Bundle) -> Session:
    return Session.open(bundle, backend=FakeBackend(token_ids=[300]))


@pytest.mark.parametrize(
    ("deadline_ms", "ratio", "is_met"),
    [(1000, 1.0, True), (100, 1.0, True), (99.9, 0.5, True), (40, 0.25, True), (39, 0.25, False)],
)
def test_the_largest_ratio_that_fits_runs(
    bundle: Bundle, deadline_ms: float, ratio: float, is_met: bool
) -> None:
    write_calibration(bundle.path, calibration(bundle))

    result = session(bundle).generate(PICTURE, "hi", deadline_ms=deadline_ms, max_new_tokens=1)

    assert result.deadline is not None
    assert (result.deadline.rung.keep_ratio, result.deadline.is_met) == (ratio, is_met)
    assert result.stages[0].num_kept == int(64 * ratio)
    found = result.to_dict()["deadline"]
    assert found == {
        "deadline_ms": deadline_ms,
        "is_met": is_met,
        "keep_ratio": ratio,
        "expected_ttft_p95_ms": TIMES[ratio],
        "reason": result.deadline.reason,
    }
    start = f"keep ratio {ratio:g} is the largest that meets" if is_met else "no keep ratio meets"
    assert found["reason"].startswith(f"{start} {deadline_ms:g} ms here")


def test_without_a_deadline_there_is_none(bundle: Bundle) -> None:
    result = session(bundle).generate(PICTURE, "hi", max_new_tokens=1)
    assert result.deadline is None
    assert result.to_dict()["deadline"] is None


def test_regions_go_with_a_deadline_that_keeps_everything(bundle: Bundle) -> None:
    write_calibration(bundle.path, calibration(bundle))
    forbidden = Region(box=(0, 0, 5, 5), rule="forbid")

    result = session(bundle).generate(
        PICTURE, "hi", deadline_ms=500, regions=[forbidden], max_new_tokens=1
    )

    assert result.stages[0].num_kept == 60


@pytest.mark.parametrize("deadline_ms", [0, -1, float("nan")])
def test_a_deadline_that_is_no_time(bundle: Bundle, deadline_ms: float) -> None:
    write_calibration(bundle.path, calibration(bundle))
    with pytest.raises(RequestError, match="ms is no time; it must be more than 0"):
        session(bundle).generate(PICTURE, "hi", deadline_ms=deadline_ms)


def test_a_deadline_and_a_pruning_cannot_go_together(bundle: Bundle) -> None:
    with pytest.raises(RequestError, match="a deadline of 50 ms chooses what to keep, so it cann"):
        session(bundle).generate(PICTURE, "hi", deadline_ms=50, pruning=Pruning())


def test_more_visual_tokens_than_were_measured(bundle: Bundle) -> None:
    write_calibration(bundle.path, calibration(bundle))
    with pytest.raises(RequestError, match="has 128 visual tokens, and times were measured with"):
        session(bundle).generate([PICTURE, PICTURE], "hi", deadline_ms=50)


def test_without_a_table_the_command_is_named(bundle: Bundle) -> None:
    with pytest.raises(RequestError) as error:
        session(bundle).generate(PICTURE, "hi", deadline_ms=50)
    assert str(error.value) == (
        f"a deadline needs times measured on this device, and {bundle.path} has none for fake on "
        f"cpu; measure with: feather-edge tune {bundle.path} --backend fake --budget-ttft-ms MS"
    )


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("machine", "Jetson", "machine Jetson, and here it is"),
        ("library", "onnxruntime 1.0", "library onnxruntime 1.0, and here it is None"),
        ("bundle", "ab" * 32, "bundle abababababab, and here it is"),
        ("feather_edge", "0", "feather-edge 0, and here it is"),
        ("num_threads", 3, "num-threads 3, and here it is None"),
        ("engines", "cd" * 32, "engines cdcdcdcdcdcd, and here it is None"),
    ],
)
def test_a_stale_table_is_refused(bundle: Bundle, field: str, value: object, text: str) -> None:
    fresh = calibration(bundle)
    stale = msgspec.structs.replace(fresh.fingerprint, **{field: value})
    write_calibration(bundle.path, msgspec.structs.replace(fresh, fingerprint=stale))
    with pytest.raises(RequestError) as error:
        session(bundle).generate(PICTURE, "hi", deadline_ms=50)
    assert f"does not hold here: it was measured with {text}" in str(error.value)
    assert str(error.value).endswith(f"measure again with: {fresh.command}")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"{", "is no calibration"),
        (b"[]", "is no calibration"),
        (b'{"format_version": 1}', "is no calibration: Object missing required field"),
        (b'{"rungs": [], "rungs": []}', "key 'rungs' stands twice in one object"),
    ],
)
def test_a_damaged_table(bundle: Bundle, data: bytes, text: str) -> None:
    file = write_calibration(bundle.path, calibration(bundle))
    file.write_bytes(data)
    with pytest.raises(RequestError, match=text):
        session(bundle).generate(PICTURE, "hi", deadline_ms=50)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format_version": 2}, "has format version 2; this feather-edge reads version 1"),
        ({"rungs": ()}, "has no rungs"),
    ],
    ids=["another version", "no rungs"],
)
def test_a_table_of_another_version(bundle: Bundle, change: dict[str, object], text: str) -> None:
    found = msgspec.structs.replace(calibration(bundle), **change)
    write_calibration(bundle.path, found)
    with pytest.raises(RequestError, match=f"{text}; measure with: feather-edge"):
        read_calibration(bundle.path, found.fingerprint)


def test_a_pruning_in_a_table_that_cannot_be(bundle: Bundle) -> None:
    file = write_calibration(bundle.path, calibration(bundle))
    file.write_bytes(file.read_bytes().replace(b'"stride": 3', b'"stride": -3'))
    with pytest.raises(RequestError, match="is no calibration: stride -3"):
        session(bundle).generate(PICTURE, "hi", deadline_ms=50)


def test_a_calibration_is_no_part_of_the_manifest(bundle: Bundle) -> None:
    file = write_calibration(bundle.path, calibration(bundle))
    assert file == bundle.path / "calibration" / "fake-cpu.json"
    assert [each.name for each in file.parent.iterdir()] == ["fake-cpu.json"]
    assert not any(
        name.startswith("calibration") for name in Bundle.open(bundle.path).manifest.files
    )
    assert read_calibration(bundle.path, calibration(bundle).fingerprint) == calibration(bundle)


def test_a_machine_is_called_by_its_board_or_its_processor(tmp_path: Path) -> None:
    (tmp_path / "proc" / "device-tree").mkdir(parents=True)
    (tmp_path / "proc" / "cpuinfo").write_text("model name\t: Fast CPU\n", encoding="utf-8")
    assert machine_name(tmp_path) == "Fast CPU"
    (tmp_path / "proc" / "device-tree" / "model").write_bytes(b"NVIDIA Jetson AGX Orin\0")
    assert machine_name(tmp_path) == "NVIDIA Jetson AGX Orin"
    assert machine_name(tmp_path / "nowhere")
