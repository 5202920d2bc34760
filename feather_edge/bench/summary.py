"""What the timings of a pruning add up to, and how two prunings compare."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from feather_edge.bench.measure import Timing

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["PairRatio", "Summary", "compare_pairs", "summarise"]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Medians over the requests of one pruning; times in milliseconds.

    Attributes:
        preprocess_ms: picture and prompt to arrays.
        vision_ms: vision encoder.
        segment_ms: prefill of each decoder segment, in order.
        prune_ms: the host's part in pruning between them.
        prefill_ms: all of the decoder's prefill, pruning and what lies between included.
        ttft_ms: call to first token.
        tpot_ms: mean time per further token of a request; None where answers had one token.
        itl_p50_ms: median time of a further token, over all requests.
        itl_p95_ms: which 95 % of them stay below.
        prefill_tokens_per_s: tokens that reached the last segment, by ``prefill_ms``.
        prefill_original_tokens_per_s: all tokens of the prompt, by ``prefill_ms``.
        decode_tokens_per_s: 1000 by ``tpot_ms``.
        energy_j: mean energy per answer; None without a sensor.
        num_prompt_tokens: of the prompt, visual ones included.
        num_text_tokens: all but the visual ones.
        num_visual_tokens: that entered each segment.
        num_new_tokens: of the answer.
        timings: every request, as measured.
    """

    preprocess_ms: float
    vision_ms: float
    segment_ms: tuple[float, ...]
    prune_ms: float
    prefill_ms: float
    ttft_ms: float
    tpot_ms: float | None
    itl_p50_ms: float | None
    itl_p95_ms: float | None
    prefill_tokens_per_s: float
    prefill_original_tokens_per_s: float
    decode_tokens_per_s: float | None
    energy_j: float | None
    num_prompt_tokens: int
    num_text_tokens: int
    num_visual_tokens: tuple[int, ...]
    num_new_tokens: int
    timings: tuple[Timing, ...]


class PairRatio(msgspec.Struct, frozen=True, kw_only=True):
    """Ratios of two requests of the same round: their median, and where 90 % of them lie."""

    median: float
    p5: float
    p95: float
    ratios: tuple[float, ...]


def summarise(timings: Sequence[Timing]) -> Summary:
    """Return the medians of at least one timing; all of one bundle and one pruning."""
    prefill_ms = _median(t.prefill_ms for t in timings)
    num_prompt = round(_median(t.num_prompt_tokens for t in timings))
    visual = tuple(round(x) for x in _medians([t.num_visual_tokens for t in timings]))
    num_text = round(_median(t.num_text_tokens for t in timings))
    itl_ms = [gap for t in timings for gap in t.itl_ms]
    tpots_ms = [t.tpot_ms for t in timings if t.tpot_ms is not None]
    tpot_ms = statistics.median(tpots_ms) if tpots_ms else None
    energy_j = [t.energy_j for t in timings if t.energy_j is not None]
    return Summary(
        preprocess_ms=_median(t.preprocess_ms for t in timings),
        vision_ms=_median(t.vision_ms for t in timings),
        segment_ms=_medians([t.segment_ms for t in timings]),
        prune_ms=_median(t.prune_ms for t in timings),
        prefill_ms=prefill_ms,
        ttft_ms=_median(t.ttft_ms for t in timings),
        tpot_ms=tpot_ms,
        itl_p50_ms=statistics.median(itl_ms) if itl_ms else None,
        itl_p95_ms=float(np.percentile(itl_ms, 95)) if itl_ms else None,
        prefill_tokens_per_s=(num_text + visual[-1]) / prefill_ms * 1e3,
        prefill_original_tokens_per_s=num_prompt / prefill_ms * 1e3,
        decode_tokens_per_s=None if tpot_ms is None else 1e3 / tpot_ms,
        energy_j=statistics.fmean(energy_j) if energy_j else None,
        num_prompt_tokens=num_prompt,
        num_text_tokens=num_text,
        num_visual_tokens=visual,
        num_new_tokens=round(_median(t.num_new_tokens for t in timings)),
        timings=tuple(timings),
    )


def compare_pairs(
    pruned: Iterable[float | None], unpruned: Iterable[float | None]
) -> PairRatio | None:
    """Return the ratios of values of the same rounds; None where neither had any.

    Sensors and answers of one token leave gaps: those rounds are left out.
    """
    ratios = [
        above / below
        for above, below in zip(pruned, unpruned, strict=True)
        if above is not None and below
    ]
    if not ratios:
        return None
    p5, median, p95 = (float(x) for x in np.percentile(ratios, (5, 50, 95)))
    return PairRatio(median=median, p5=p5, p95=p95, ratios=tuple(ratios))


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _medians(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(statistics.median(column) for column in zip(*rows, strict=True))
