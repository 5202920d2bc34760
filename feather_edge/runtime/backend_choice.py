"""Which backend ``auto`` is on this machine: the one that ``feather-edge tune`` measured fastest.

Fastest to the first token; where two are alike in that, fastest with the tokens after it.

The times lie in a bundle's ``calibration`` folder, bound to the same things as those of deadlines;
where they do not hold, ``auto`` is ONNX Runtime and says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from feather_edge import strict_json
from feather_edge.errors import BackendError
from feather_edge.locking import exclusive
from feather_edge.runtime.fingerprint import Fingerprint
from feather_edge.staging import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

__all__ = ["BackendTable", "BackendTime", "best_first", "choose_backend", "write_backend_table"]

FILE = "calibration/backends.json"
FORMAT_VERSION = 2
MAX_BYTES = 2**20
DEFAULT = "onnxruntime"
TIE_RATIO = 1.05
"""Times to the first token that are no further apart than this are alike."""


class BackendTime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One backend, measured.

    Attributes:
        fingerprint: what its time depends on.
        ttft_ms: median time to the first token of a request as the bundle's recipe has it.
        tpot_ms: median time of each token after it; None if answers had no other.
    """

    fingerprint: Fingerprint
    ttft_ms: float
    tpot_ms: float | None = None

    def __str__(self) -> str:
        further = "" if self.tpot_ms is None else f" and {self.tpot_ms:.1f} ms"
        return f"{self.fingerprint.backend} {self.ttft_ms:.1f}{further or ' ms'}"


class BackendTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file.

    Attributes:
        command: that measured it, to be run again when it is stale.
        measured_at: UTC.
        warmup: rounds that did not count.
        repeat: rounds that did.
        times: of the backends, in turn in one run, in the order of ``best_first``.
    """

    format_version: int
    command: str
    measured_at: str
    warmup: int
    repeat: int
    times: tuple[BackendTime, ...]

    @property
    def best(self) -> str:
        """Name of the backend that ``auto`` is."""
        return self.times[0].fingerprint.backend

    @property
    def reason(self) -> str:
        """What was measured, in words."""
        times = ", ".join(map(str, self.times))
        further = "" if self.times[0].tpot_ms is None else " and of each further one"
        return f"median times to the first token{further} measured here: {times}"


def best_first(times: Iterable[BackendTime]) -> tuple[BackendTime, ...]:
    """Return times by the first token; the first of them is the best.

    Where others are alike, it is the one among them that is fastest with further tokens.
    """
    by_first = sorted(times, key=lambda each: each.ttft_ms)
    alike = [each for each in by_first if each.ttft_ms <= TIE_RATIO * by_first[0].ttft_ms]
    best = min(alike, key=lambda each: each.tpot_ms or 0.0)
    return (best, *(each for each in by_first if each is not best))


def choose_backend(folder: Path, here: Callable[[str], Fingerprint]) -> tuple[str, str | None]:
    """Return which backend ``auto`` is for a bundle, and why; no reason without a table.

    Args:
        folder: of the bundle.
        here: returns what a backend's times depend on, here and now; a backend that is missing
            raises a ``BackendError``.
    """
    file = folder / FILE
    if not file.is_file():
        return DEFAULT, None
    again = "measure again with: "
    try:
        table = strict_json.read_record(
            file, BackendTable, max_bytes=MAX_BYTES, format_version=FORMAT_VERSION
        )
    except strict_json.StrictJSONError as error:
        return DEFAULT, (
            f"backend {DEFAULT}, since {file} is no table of backends: {error}; {again}"
            f"feather-edge tune {folder} --budget-ttft-ms MS"
        )
    if not table.times:
        return DEFAULT, f"backend {DEFAULT}, since {file} has no times; {again}{table.command}"
    try:
        difference = table.times[0].fingerprint.difference(here(table.best))
    except BackendError as error:
        return DEFAULT, f"backend {DEFAULT}, though {table.best} was measured faster: {error}"
    if difference is not None:
        return DEFAULT, (
            f"backend {DEFAULT}, since {file} does not hold here: it was measured with "
            f"{difference}; {again}{table.command}"
        )
    return table.best, f"backend {table.best}, by {table.reason}"


def write_backend_table(folder: Path, table: BackendTable) -> Path:
    """Write a table into a bundle, in place of an older one.

    Raises:
        BundleError: if another process writes the bundle.
    """
    file = folder / FILE
    with exclusive(folder):
        write_whole(file, strict_json.dumps(table))
    return file
