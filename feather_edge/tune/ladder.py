"""A ladder of keep ratios, and the time to the first token on each rung, measured here and now."""

from __future__ import annotations

import statistics
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import numpy as np

from feather_edge.bench.measure import measure
from feather_edge.evaluate.comparison import PRE, Comparison
from feather_edge.runtime.calibration import FORMAT_VERSION, Calibration, Rung
from feather_edge.runtime.fingerprint import fingerprint
from feather_edge.runtime.session import default_pruning

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from feather_edge.bench.measure import OnProgress, Timing
    from feather_edge.bench.requests import Requests
    from feather_edge.bundle import Bundle
    from feather_edge.pruning import Pruning
    from feather_edge.runtime.session import Session

__all__ = ["KEEP_RATIOS", "comparison", "ladder", "measure_ladder", "own_method"]

KEEP_RATIOS = (1.0, 0.75, 0.5, 0.4, 0.3, 0.2, 0.1)


def own_method(bundle: Bundle) -> str:
    """Return the method of the bundle's own recipe, as ``eval`` names it."""
    pruning = default_pruning(bundle)
    if bundle.schedule.stages:
        return "feather" if pruning.criterion == "none" else pruning.criterion
    return PRE + ("uniform" if pruning.pre_criterion == "none" else pruning.pre_criterion)


def comparison(bundle: Bundle, methods: Sequence[str], keep_ratios: Sequence[float]) -> Comparison:
    """Return methods at ratios that mean the same for all of them, where stages allow it."""
    return Comparison(
        methods=tuple(methods),
        keep_ratios=tuple(keep_ratios),
        budget="equal" if bundle.schedule.stages else "own",
    )


def ladder(bundle: Bundle, method: str, keep_ratios: Sequence[float]) -> dict[float, Pruning]:
    """Return the request of each keep ratio, falling. A rung prunes in one place only."""
    ratios = sorted(set(keep_ratios), reverse=True)
    prunings = comparison(bundle, [method], ratios).prunings(bundle)
    return {ratio: prunings[(method, ratio)] for ratio in ratios}


def measure_ladder(
    session: Session,
    rungs: Mapping[float, Pruning],
    requests: Requests,
    *,
    warmup: int,
    repeat: int,
    command: str,
    accuracy: Mapping[float, dict[str, float]],
    on_progress: OnProgress | None = None,
) -> Calibration:
    """Time every rung against the others, in turn, one token each.

    Args:
        session: whose graphs run; used by nobody else meanwhile.
        rungs: requests by keep ratio, falling.
        requests: see ``feather_edge.bench.requests``.
        warmup: rounds before the first that counts.
        repeat: rounds that count.
        command: that is running, for whoever has to repeat it.
        accuracy: kept by keep ratio, where it is known.
        on_progress: called after each request.
    """
    names = {f"{ratio:g}": ratio for ratio in rungs}
    timings = measure(
        session,
        {name: rungs[ratio] for name, ratio in names.items()},
        requests,
        warmup=warmup,
        repeat=repeat,
        max_new_tokens=1,
        on_progress=on_progress,
    )
    first = next(iter(timings.values()))[0]
    return Calibration(
        format_version=FORMAT_VERSION,
        command=command,
        measured_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        fingerprint=fingerprint(session.bundle, session.backend),
        num_prompt_tokens=first.num_prompt_tokens,
        num_visual_tokens=first.num_prompt_tokens - first.num_text_tokens,
        warmup=warmup,
        repeat=repeat,
        rungs=tuple(
            _rung(ratio, rungs[ratio], timings[name], accuracy.get(ratio))
            for name, ratio in names.items()
        ),
    )


def _rung(
    ratio: float, pruning: Pruning, timings: Sequence[Timing], accuracy: dict[str, float] | None
) -> Rung:
    ttft_ms = [timing.ttft_ms for timing in timings]
    return Rung(
        keep_ratio=ratio,
        pruning=pruning,
        num_visual_tokens=timings[0].num_visual_tokens,
        ttft_ms=statistics.median(ttft_ms),
        ttft_p95_ms=float(np.percentile(ttft_ms, 95)),
        accuracy=accuracy,
    )
