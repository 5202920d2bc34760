"""Records of a deployment: what is kept of them, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from feather_edge.deploy.state import (
    FORMAT_VERSION,
    STAGES,
    DeployState,
    Measured,
    StageRecord,
    read_measured,
    read_state,
    write_measured,
    write_state,
)
from feather_edge.errors import BundleError

if TYPE_CHECKING:
    from pathlib import Path

    from feather_edge.deploy.state import StageName


def record(name: StageName, **inputs: str) -> StageRecord:
    return StageRecord(name=name, status="done", inputs=inputs, summary="well")


def state(*names: StageName) -> DeployState:
    return DeployState(
        format_version=FORMAT_VERSION,
        checkpoint="demo",
        target="cpu",
        stages=tuple(record(name) for name in names),
    )


def names(found: DeployState) -> list[str]:
    return [each.name for each in found.stages]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None
    assert read_measured(tmp_path) == Measured(format_version=FORMAT_VERSION)
    write_state(tmp_path, state(*STAGES))
    write_measured(tmp_path, Measured(format_version=FORMAT_VERSION, reports={"bench": {}}))
    assert read_state(tmp_path) == state(*STAGES)
    assert read_measured(tmp_path).reports == {"bench": {}}
    assert sorted(path.name for path in (tmp_path / "deploy").iterdir()) == [
        "measured.json", "state.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("done_again", "left"),
    [
        ("fit", ["fit", "export", "build-engine", "verify", "bench"]),
        ("export", ["fit", "export"]),
        ("build-engine", ["fit", "export", "build-engine"]),
        ("bench", ["fit", "export", "build-engine", "verify", "bench"]),
    ],
)
def test_later_stages_depend_on_all_but_fit(done_again: StageName, left: list[str]) -> None:
    assert names(state(*STAGES).with_stage(record(done_again))) == left


def test_stages_stand_in_their_order() -> None:
    assert names(state("export", "verify").with_stage(record("fit"))) == [
        "fit", "export", "verify",
    ]  # fmt: skip
    assert names(state(*STAGES).without("verify")) == ["fit", "export", "build-engine"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "it is no JSON"),
        ("[]", "has format version None"),
        ('{"format_version": 2}', "has format version 2; this feather-edge reads version 1"),
        ('{"format_version": true}', "has format version True"),
        ('{"format_version": 1}', "missing required field `checkpoint`"),
        (
            '{"format_version": 1, "checkpoint": "x", "target": "cpu", "more": 1}',
            "unknown field `more`",
        ),
        (
            '{"format_version": 1, "checkpoint": "x", "target": "c", "stages": [{"name": "ft"}]}',
            "Invalid enum value 'ft'",
        ),
        ('{"format_version": 1, "format_version": 1}', "stands twice"),
    ],
)
def test_a_damaged_state_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "state.json").write_text(text)
    with pytest.raises(BundleError, match=message) as caught:
        read_state(tmp_path)
    assert "state.json" in str(caught.value)
    assert "deploy again" in str(caught.value)
    assert "\n" not in str(caught.value)
