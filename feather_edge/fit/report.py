"""What ``fit`` answers: memory by stage, a verdict, and what would help."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

__all__ = [
    "ERROR",
    "Advice",
    "DiskFit",
    "FitReport",
    "GraphFit",
    "StageFit",
    "StageName",
    "Verdict",
    "verdict_of",
    "worst",
]

StageName = Literal["export", "build", "run"]
Verdict = Literal["fits", "tight", "does not fit"]
VERDICTS: tuple[Verdict, ...] = ("fits", "tight", "does not fit")
ERROR = 0.2
"""What estimates may be off, as docs/fit.md shows; a peak this close to what there is is tight."""


class StageFit(msgspec.Struct, frozen=True, kw_only=True):
    """One stage at its peak.

    Attributes:
        name: ``export``, ``build`` (of engines) or ``run``.
        peak_mib: of the process, the tactics' workspace of a build included.
        available_mib: what there is for it; None where that is not known, as with a GPU that has
            memory of its own.
        verdict: of this stage alone; ``fits`` where nothing is known against it.
        parts: what the peak is made of, in MiB.
    """

    name: StageName
    peak_mib: float
    available_mib: float | None
    verdict: Verdict
    parts: dict[str, float]


class GraphFit(msgspec.Struct, frozen=True, kw_only=True):
    """One graph.

    Attributes:
        name: of the graph.
        weights_mib: by their type.
        rows: that enter it at most in a prefill; of the vision encoder, visual tokens.
        cache_mib: of its KV caches when they are full.
        activations_mib: alive at once in the largest profile.
    """

    name: str
    weights_mib: dict[str, float]
    rows: int
    cache_mib: float
    activations_mib: float


class DiskFit(msgspec.Struct, frozen=True, kw_only=True):
    """Disk in MiB; ``available_mib`` is None where the device is another machine."""

    bundle_mib: float
    engines_mib: float
    available_mib: float | None


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """One change, and what the estimate says with it.

    Attributes:
        change: in words.
        options: what to type, for the command that takes it; empty where it is no option.
        peak_mib: of the stages that were too much, the largest.
        verdict: with this change alone.
    """

    change: str
    options: str
    peak_mib: float
    verdict: Verdict

    def __str__(self) -> str:
        typed = f" ({self.options})" if self.options else ""
        return f"{self.change}{typed}: {self.peak_mib:.0f} MiB, {self.verdict}"


class FitReport(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a model fits.

    Attributes:
        target: the device, or ``this machine``.
        verdict: the worst of all stages and of the disk.
        stages: in the order in which they happen; a bundle needs no export.
        advice: changes that would help, each alone, best first; empty where it fits.
        source: the checkpoint or bundle.
        precision: of the decoder.
        limits: shapes that were assumed, by their name in an engine recipe.
        available: where the numbers of what there is come from, in words.
        graphs: what each takes.
        disk: what is written.
        notes: what was not known.
    """

    target: str
    verdict: Verdict
    stages: tuple[StageFit, ...]
    advice: tuple[Advice, ...]
    source: str
    precision: str
    limits: dict[str, Any]
    available: str
    graphs: tuple[GraphFit, ...]
    disk: DiskFit
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the one JSON document of ``feather-edge fit --json``."""
        document: dict[str, Any] = msgspec.to_builtins(self)
        return document


def verdict_of(peak_mib: float, available_mib: float | None) -> Verdict:
    """Return whether a peak fits: tight where an error of ``ERROR`` decides."""
    if available_mib is None or peak_mib * (1 + ERROR) <= available_mib:
        return "fits"
    return "tight" if peak_mib <= available_mib else "does not fit"


def worst(verdicts: list[Verdict]) -> Verdict:
    """Return the worst of some verdicts."""
    return max(verdicts, key=VERDICTS.index, default="fits")
