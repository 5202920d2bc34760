"""Time prunings against one another, in turn, in one session.

A machine's speed drifts with its clock, its temperature and its other programs. So prunings are
never timed one after the other: every round asks all of them, in the opposite order of the round
before, and what is compared was measured within the same moments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from feather_edge.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from feather_edge.bench.requests import Request, Requests
    from feather_edge.pruning import Pruning
    from feather_edge.runtime.result import Result
    from feather_edge.runtime.session import Session

    OnProgress = Callable[[int, int], None]
    """Called with the requests done and all that there are, warm-up included."""

    Joules = Callable[[], float]
    """Returns the energy used since some moment; see ``feather_edge.bench.energy``."""

__all__ = ["DEFAULT_REPEAT", "DEFAULT_WARMUP", "Timing", "measure"]

DEFAULT_WARMUP = 3
DEFAULT_REPEAT = 20


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """One request, timed; fields are those of ``feather_edge.runtime.result.Result``.

    Attributes:
        num_text_tokens: of the prompt, all but the visual ones.
        num_visual_tokens: that entered each segment.
        num_new_tokens: of the answer, the end token included.
        energy_j: used by the device from call to last token; None without a sensor.
    """

    preprocess_ms: float
    vision_ms: float
    segment_ms: tuple[float, ...]
    prune_ms: float
    prefill_ms: float
    ttft_ms: float
    tpot_ms: float | None
    itl_ms: tuple[float, ...]
    num_prompt_tokens: int
    num_text_tokens: int
    num_visual_tokens: tuple[int, ...]
    num_new_tokens: int
    energy_j: float | None


def measure(
    session: Session,
    prunings: Mapping[str, Pruning],
    requests: Requests,
    *,
    warmup: int = DEFAULT_WARMUP,
    repeat: int = DEFAULT_REPEAT,
    max_new_tokens: int | None = None,
    joules: Joules | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, list[Timing]]:
    """Return ``repeat`` timings of each pruning; number i of all of them are of one round.

    Args:
        session: whose graphs run; used by nobody else meanwhile.
        prunings: what is timed, by name.
        requests: see ``feather_edge.bench.requests``.
        warmup: rounds before the first that counts.
        repeat: rounds that count.
        max_new_tokens: limit of each answer; None is the session's own.
        joules: reads the energy meter; None for none.
        on_progress: called after each request.

    Raises:
        RequestError: if there is nothing to time, or a request does not fit the bundle.
    """
    if repeat < 1 or warmup < 0 or not prunings:
        raise RequestError(
            f"cannot time {len(prunings)} prunings in {repeat} rounds after {warmup} to warm up; "
            f"give one pruning and one round at least"
        )
    timings: dict[str, list[Timing]] = {name: [] for name in prunings}
    total = (warmup + repeat) * len(prunings)
    for round_number in range(warmup + repeat):
        asked = dict(zip(prunings, requests(round_number, len(prunings)), strict=True))
        order = list(prunings)[:: 1 if round_number % 2 == 0 else -1]
        for place, name in enumerate(order, start=1):
            timing = _time(session, asked[name], prunings[name], max_new_tokens, joules)
            if round_number >= warmup:
                timings[name].append(timing)
            if on_progress is not None:
                on_progress(round_number * len(prunings) + place, total)
    return timings


def _time(
    session: Session,
    request: Request,
    pruning: Pruning,
    max_new_tokens: int | None,
    joules: Joules | None,
) -> Timing:
    before_j = None if joules is None else joules()
    result = session.generate(
        request.image, request.prompt, pruning=pruning, max_new_tokens=max_new_tokens
    )
    return Timing(
        preprocess_ms=result.preprocess_ms,
        vision_ms=result.vision_ms,
        segment_ms=result.segment_ms,
        prune_ms=result.prune_ms,
        prefill_ms=result.prefill_ms,
        ttft_ms=result.ttft_ms,
        tpot_ms=result.tpot_ms,
        itl_ms=result.itl_ms,
        num_prompt_tokens=result.num_prompt_tokens,
        num_text_tokens=result.num_prompt_tokens - result.num_visual_tokens,
        num_visual_tokens=_entering(result),
        num_new_tokens=len(result.itl_ms) + 1,
        energy_j=None if joules is None or before_j is None else joules() - before_j,
    )


def _entering(result: Result) -> tuple[int, ...]:
    """Return the visual tokens that entered each segment."""
    counts = [result.num_visual_tokens]
    for stage in result.stages:
        if stage.before_layer == 0:
            counts[0] = stage.num_kept
        else:
            counts.append(stage.num_kept)
    return tuple(counts)
