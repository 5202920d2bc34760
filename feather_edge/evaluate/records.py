"""The state of an evaluation: one line per answer, appended as it comes, read back on a rerun."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from feather_edge import strict_json
from feather_edge.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["Conditions", "Record", "RecordFile", "Trial", "read_records"]

CONDITIONS_FILE = "conditions.json"
RECORDS_FILE = "samples.jsonl"

Trial = tuple[str, int, str, float]
"""Sample, number of the question, method, keep ratio: what is answered at most once."""


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """What must be the same for answers to be comparable, hence for a run to be continued.

    Samples, methods and keep ratios may grow from one run to the next.
    """

    feather_edge_version: str
    bundle_source: str
    bundle_sha256: str
    stages: tuple[int, ...]
    backend: str
    task: str
    task_digest: str
    budget: str
    box_format: str | None
    stride: int
    selection: str
    seed: int


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One answer.

    Attributes:
        sample: name of the picture.
        question: number among the picture's questions.
        kind: localisation or coarse.
        method: criterion; ``none`` is unpruned.
        keep_ratio: the one asked for; 1 for ``none``.
        text: the answer.
        score: overlap of the boxes, or 1 for the right word, else 0.
        is_right: overlap of at least 0.5, or the right word.
        num_text_tokens: of the prompt.
        num_visual_tokens: that entered each segment.
        kept_row: mean row of the tokens that the first stage kept; 0 is the top of the picture, 1
            its bottom.
        ttft_ms: time to the first token.
    """

    sample: str
    question: int
    kind: Literal["localisation", "coarse"]
    method: str
    keep_ratio: float
    text: str
    score: float
    is_right: bool
    num_text_tokens: int
    num_visual_tokens: tuple[int, ...]
    kept_row: float
    ttft_ms: float

    @property
    def trial(self) -> Trial:
        """What this answers."""
        return (self.sample, self.question, self.method, self.keep_ratio)


class RecordFile:
    """Answers on disk: all that were there, and those that are added.

    Args:
        folder: made if missing.
        conditions: of this run; those of the answers on disk must be the same.
        force: throw away what is there.

    Raises:
        RequestError: if the folder holds answers under other conditions, or a damaged line.
    """

    def __init__(self, folder: Path, conditions: Conditions, *, force: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / RECORDS_FILE
        stated = folder / CONDITIONS_FILE
        if force:
            self._path.unlink(missing_ok=True)
        elif self._path.exists():
            _require_same(stated, conditions)
        self.records: dict[Trial, Record] = {r.trial: r for r in read_records(folder)}
        stated.write_bytes(strict_json.dumps(conditions))
        self._stream = self._path.open("ab")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stream.close()

    def missing(self, trials: Iterable[Trial]) -> list[Trial]:
        """Return the trials that have no answer yet."""
        return [trial for trial in trials if trial not in self.records]

    def add(self, record: Record) -> None:
        """Keep an answer; it is on disk when this returns."""
        self._stream.write(msgspec.json.encode(record) + b"\n")
        self._stream.flush()
        self.records[record.trial] = record


def _require_same(stated: Path, conditions: Conditions) -> None:
    try:
        before = msgspec.json.decode(stated.read_bytes(), type=Conditions)
    except (OSError, msgspec.MsgspecError) as error:
        raise RequestError(
            f"{stated} cannot be read: {error}; choose another output, or start over with --force"
        ) from error
    for name in Conditions.__struct_fields__:
        was, now = getattr(before, name), getattr(conditions, name)
        if was != now:
            raise RequestError(
                f"{stated.parent} holds answers with {name} {was}, this run has {now}; choose "
                f"another output, or start over with --force"
            )


def read_records(folder: Path) -> list[Record]:
    """Read the answers of a folder; a line that a killed run left unfinished is cut off.

    Raises:
        RequestError: if a line is damaged.
    """
    path = folder / RECORDS_FILE
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) != len(data):
        path.write_bytes(whole)
    return [_decode(path, number, line) for number, line in enumerate(whole.splitlines(), start=1)]


def _decode(path: Path, number: int, line: bytes) -> Record:
    try:
        return msgspec.json.decode(line, type=Record)
    except msgspec.MsgspecError as error:
        raise RequestError(
            f"{path}, line {number}: {error}; remove the line, or start over with --force"
        ) from error
