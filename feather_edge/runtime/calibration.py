"""Times to the first token measured on this device, and the keep ratio that meets a deadline.

``feather-edge tune`` writes one file for each backend and device into a bundle's ``calibration``
folder; it is no part of the manifest. A file that was measured with another bundle, machine or
software is refused, never trusted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from feather_edge import strict_json
from feather_edge.bundle import is_inside
from feather_edge.errors import RequestError
from feather_edge.locking import exclusive
from feather_edge.pruning.request import Pruning
from feather_edge.runtime.fingerprint import Fingerprint, fingerprint
from feather_edge.staging import write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from feather_edge.bundle import Bundle
    from feather_edge.pruning import Layout
    from feather_edge.runtime.backends import Backend

__all__ = [
    "Calibration", "DeadlineChoice", "Deadlines", "Rung", "read_calibration", "write_calibration",
]  # fmt: skip

FORMAT_VERSION = 1
MAX_BYTES = 2**20


class Rung(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One keep ratio, measured.

    Attributes:
        keep_ratio: what it is called by.
        pruning: the request.
        num_visual_tokens: that entered each segment.
        ttft_ms: median time to the first token.
        ttft_p95_ms: which 95 % of the requests stayed below.
        accuracy: what of the unpruned accuracy it kept on the development split, by kind of
            question; None where only time was measured.
    """

    keep_ratio: float
    pruning: Pruning
    num_visual_tokens: tuple[int, ...]
    ttft_ms: float
    ttft_p95_ms: float
    accuracy: dict[str, float] | None = None


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file.

    Attributes:
        command: that measured it, to be run again when it is stale.
        measured_at: UTC.
        fingerprint: what the times depend on.
        num_prompt_tokens: of the requests, visual ones included.
        num_visual_tokens: of the requests, before any pruning.
        warmup: rounds that did not count.
        repeat: rounds that did.
        rungs: by falling keep ratio.
    """

    format_version: int
    command: str
    measured_at: str
    fingerprint: Fingerprint
    num_prompt_tokens: int
    num_visual_tokens: int
    warmup: int
    repeat: int
    rungs: tuple[Rung, ...]

    def choose(self, deadline_ms: float, *, num_visual_tokens: int) -> DeadlineChoice:
        """Return the largest keep ratio that meets a deadline, or the smallest there is.

        Args:
            deadline_ms: time to the first token.
            num_visual_tokens: of the request; more than were measured cannot be foretold.

        Raises:
            RequestError: if the deadline is no time, or the request is larger than the measured.
        """
        if not deadline_ms > 0:
            raise RequestError(f"deadline {deadline_ms:g} ms is no time; it must be more than 0")
        if num_visual_tokens > self.num_visual_tokens:
            raise RequestError(
                f"the request has {num_visual_tokens} visual tokens, and times were measured with "
                f"{self.num_visual_tokens}; measure with such a picture: {self.command} --image "
                f"FILE --prompt TEXT"
            )
        for rung in self.rungs:
            if rung.ttft_p95_ms <= deadline_ms:
                return DeadlineChoice(deadline_ms=deadline_ms, is_met=True, rung=rung)
        return DeadlineChoice(deadline_ms=deadline_ms, is_met=False, rung=self.rungs[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineChoice:
    """Which keep ratio a deadline led to.

    Attributes:
        deadline_ms: asked for.
        is_met: whether the rung's 95th percentile is within it.
        rung: what runs.
    """

    deadline_ms: float
    is_met: bool
    rung: Rung

    @property
    def reason(self) -> str:
        """Why, in words."""
        ratio, p95 = f"{self.rung.keep_ratio:g}", f"{self.rung.ttft_p95_ms:.1f} ms"
        if self.is_met:
            return (
                f"keep ratio {ratio} is the largest that meets {self.deadline_ms:g} ms here: 95 % "
                f"of requests took at most {p95} to the first token"
            )
        return (
            f"no keep ratio meets {self.deadline_ms:g} ms here; the smallest, {ratio}, runs, with "
            f"which 95 % of requests took at most {p95} to the first token"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "deadline_ms": self.deadline_ms,
            "is_met": self.is_met,
            "keep_ratio": self.rung.keep_ratio,
            "expected_ttft_p95_ms": self.rung.ttft_p95_ms,
            "reason": self.reason,
        }


class Deadlines:
    """The keep ratios of one session that meet deadlines; its calibration is read once.

    Args:
        bundle: whose calibration.
        backend: that runs it.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self._bundle = bundle
        self._backend = backend
        self._calibration: Calibration | None = None

    def choose(
        self, deadline_ms: float | None, layout: Layout, *, pruning: Pruning | None
    ) -> DeadlineChoice | None:
        """Return what a deadline leads to, None without one; ``pruning`` is what was asked for.

        Raises:
            RequestError: if there are both, or no calibration that holds here.
        """
        if deadline_ms is None:
            return None
        if pruning is not None:
            raise RequestError(
                f"a deadline of {deadline_ms:g} ms chooses what to keep, so it cannot go with a "
                f"pruning; leave one of them out"
            )
        if self._calibration is None:
            here = fingerprint(self._bundle, self._backend)
            self._calibration = read_calibration(self._bundle.path, here)
        visual = layout.num_visual_tokens
        return self._calibration.choose(deadline_ms, num_visual_tokens=visual)


def read_calibration(folder: Path, here: Fingerprint) -> Calibration:
    """Read the calibration of a bundle for this backend, device and machine.

    Raises:
        RequestError: if there is none, or it does not hold here, naming the command to run.
    """
    file = folder / here.file
    backend = f"{here.backend} on {here.device}"
    command = f"feather-edge tune {folder} --backend {here.backend} --budget-ttft-ms MS"
    if not is_inside(file, folder):
        raise RequestError(
            f"{file} lies outside of the bundle, which is never opened; measure with: {command}"
        )
    if not file.is_file():
        raise RequestError(
            f"a deadline needs times measured on this device, and {folder} has none for "
            f"{backend}; measure with: {command}"
        )
    try:
        found = strict_json.read_record(
            file, Calibration, max_bytes=MAX_BYTES, format_version=FORMAT_VERSION
        )
    except strict_json.StrictJSONError as error:
        raise RequestError(
            f"{file} is no calibration: {error}; measure with: {command}"
        ) from error
    if not found.rungs:
        raise RequestError(f"{file} is no calibration: it has no rungs; measure with: {command}")
    difference = found.fingerprint.difference(here)
    if difference is not None:
        raise RequestError(
            f"{file} does not hold here: it was measured with {difference}; measure again with: "
            f"{found.command}"
        )
    return found


def write_calibration(folder: Path, calibration: Calibration) -> Path:
    """Write a calibration into a bundle, in place of one for the same backend and device.

    Raises:
        BundleError: if another process writes the bundle.
    """
    file = folder / calibration.fingerprint.file
    with exclusive(folder):
        write_whole(file, strict_json.dumps(calibration))
    return file
