"""What a benchmark found: one document for machines, rows of a table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from feather_edge.bench.environment import Environment
from feather_edge.bench.floor import Floor
from feather_edge.bench.measure import DEFAULT_REPEAT, DEFAULT_WARMUP
from feather_edge.bench.summary import PairRatio, Summary, compare_pairs
from feather_edge.errors import BenchmarkError
from feather_edge.pruning import Pruning

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feather_edge.bench.measure import Timing

__all__ = ["LIMITS", "Opened", "Ratio", "Report", "Settings", "compare"]

LIMITS = (
    "ttft_ms", "prefill_ms", "tpot_ms", "load_ms", "peak_rss_mib", "ttft_ratio", "prefill_ratio",
    "tpot_ratio",
)  # fmt: skip
"""What can be given a limit; times are of the pruned request where there is one."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured, and how.

    Attributes:
        pruning: what to keep in the pruned requests.
        backend: what runs the graphs.
        target: whose engines, see ``Session.open``.
        num_threads: of one graph run on the CPU; None is the backend's own choice.
        cuda_graphs: whether decode steps may be captured as CUDA graphs.
        warmup: rounds before the first that counts.
        repeat: rounds that count.
        max_new_tokens: limit of each answer; None is the bundle's own.
    """

    pruning: Pruning
    backend: str = "auto"
    target: str | None = None
    num_threads: int | None = None
    cuda_graphs: bool = True
    warmup: int = DEFAULT_WARMUP
    repeat: int = DEFAULT_REPEAT
    max_new_tokens: int | None = None


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """The session.

    Attributes:
        load_ms: from the folder to a session that can be asked.
        peak_rss_mib: most host memory of the process, at the end.
        peak_device_mib: most device memory in use after any request; None on a CPU, and where the
            backend cannot say.
        notes: how the backend runs, where that is not as one might expect.
    """

    load_ms: float
    peak_rss_mib: float
    peak_device_mib: float | None
    notes: tuple[str, ...]


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """Pruned by unpruned: ratios of medians, and of floating-point operations of the prefill.

    Attributes:
        pairs: ratios of the two requests of each round.
    """

    ttft: float
    prefill: float
    flops: float
    tpot: float | None
    pairs: dict[str, PairRatio]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything ``feather-edge bench --json`` prints; times in milliseconds.

    ``pruned`` and ``ratio`` are None where nothing was pruned, for ``reason``.
    """

    environment: Environment
    settings: Settings
    floor: Floor
    session: Opened
    unpruned: Summary
    pruned: Summary | None
    ratio: Ratio | None
    reason: str | None

    def check(self, limits: Mapping[str, float]) -> None:
        """Hold the report against limits, by their names in ``LIMITS``.

        Raises:
            BenchmarkError: naming the first value that is above its limit, or was not measured.
        """
        for name, limit in limits.items():
            value = self._value(name)
            if value is None:
                raise BenchmarkError(
                    f"{name} was not measured, so it cannot be held against {limit:g}"
                )
            if value > limit:
                raise BenchmarkError(f"{name} is {value:.4g}, above its limit of {limit:g}")

    def _value(self, name: str) -> float | None:
        if name.endswith("_ratio"):
            holder: Any = self.ratio
            name = name.removesuffix("_ratio")
        elif name in Opened.__struct_fields__:
            holder = self.session
        else:
            holder = self.pruned or self.unpruned
        value: float | None = getattr(holder, name, None)
        return value


def compare(pruned: Summary | None, unpruned: Summary, floor: Floor) -> Ratio | None:
    """Return how pruned requests compare with the unpruned ones of the same rounds."""
    if pruned is None or floor.pruned is None:
        return None
    names = {"ttft": "ttft_ms", "prefill": "prefill_ms", "tpot": "tpot_ms", "energy": "energy_j"}
    pairs = {
        key: compare_pairs(_column(pruned.timings, name), _column(unpruned.timings, name))
        for key, name in names.items()
    }
    return Ratio(
        ttft=pruned.ttft_ms / unpruned.ttft_ms,
        prefill=pruned.prefill_ms / unpruned.prefill_ms,
        flops=floor.pruned.prefill_flops / floor.unpruned.prefill_flops,
        tpot=_ratio(pruned.tpot_ms, unpruned.tpot_ms),
        pairs={key: pair for key, pair in pairs.items() if pair is not None},
    )


def _column(timings: tuple[Timing, ...], name: str) -> list[float | None]:
    return [getattr(timing, name) for timing in timings]


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None
