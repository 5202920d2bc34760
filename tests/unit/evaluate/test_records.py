from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from feather_edge.errors import RequestError
from feather_edge.evaluate.records import Conditions, Record, RecordFile

if TYPE_CHECKING:
    from pathlib import Path

CONDITIONS = Conditions(
    feather_edge_version="1", bundle_source="x", bundle_sha256="0", stages=(2, 4),
    backend="auto", task="scenes", task_digest="test", budget="equal",
    box_format="location-tokens", stride=3, selection="fill", seed=0,
)  # fmt: skip


def record(number: int) -> Record:
    return Record(
        sample="test/0", question=number, kind="coarse", method="feather", keep_ratio=0.5,
        text="red", score=1.0, is_right=True, num_text_tokens=9, num_visual_tokens=(16, 8, 2),
        kept_row=0.5, ttft_ms=1.0,
    )  # fmt: skip


def test_a_rerun_reads_what_is_there(tmp_path: Path) -> None:
    with RecordFile(tmp_path, CONDITIONS) as file:
        file.add(record(0))
    with RecordFile(tmp_path, CONDITIONS) as file:
        assert list(file.records.values()) == [record(0)]
        assert file.missing([record(0).trial, record(1).trial]) == [record(1).trial]


def test_an_answer_is_on_disk_at_once_and_half_a_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    with RecordFile(tmp_path, CONDITIONS) as file:
        file.add(record(0))
        assert path.read_bytes().endswith(b"}\n")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"sample": "te')
    with RecordFile(tmp_path, CONDITIONS) as file:
        file.add(record(1))
    with RecordFile(tmp_path, CONDITIONS) as file:
        assert len(file.records) == 2
    assert path.read_bytes().startswith(whole)


def test_other_conditions_are_refused_until_forced(tmp_path: Path) -> None:
    with RecordFile(tmp_path, CONDITIONS) as file:
        file.add(record(0))
    other = msgspec.structs.replace(CONDITIONS, seed=5)
    with pytest.raises(RequestError, match="holds answers with seed 0, this run has 5; choose an"):
        RecordFile(tmp_path, other)
    with RecordFile(tmp_path, other, force=True) as file:
        assert not file.records


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    with RecordFile(tmp_path, CONDITIONS) as file:
        file.add(record(0))
    path = tmp_path / "samples.jsonl"
    path.write_bytes(path.read_bytes() + b"nonsense\n")
    with pytest.raises(RequestError, match="samples.jsonl, line 2: .*start over with --force"):
        RecordFile(tmp_path, CONDITIONS)


def test_answers_without_conditions_are_refused(tmp_path: Path) -> None:
    with RecordFile(tmp_path, CONDITIONS) as file:
        file.add(record(0))
    (tmp_path / "conditions.json").unlink()
    with pytest.raises(RequestError, match="conditions.json cannot be read"):
        RecordFile(tmp_path, CONDITIONS)
