"""From answers to figures: medians, ratios of one round, agreement, and the bars."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Literal, get_args

from compare_peers.contenders import Precision

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from compare_peers.contenders import Row
    from compare_peers.runner import Answer

Figure = Literal["ttft_ms", "tpot_ms", "vision_ms"]


def median(answers: Sequence[Answer], figure: Figure) -> float | None:
    """Return the median of a figure; None if it is not told."""
    values = [getattr(answer, figure) for answer in answers]
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def ratio(ours: Sequence[Answer], theirs: Sequence[Answer], figure: Figure) -> float:
    """Return the median over rounds of one row's figure by another's of the same round."""
    return statistics.median(
        getattr(one, figure) / getattr(other, figure)
        for one, other in zip(ours, theirs, strict=True)
    )


def fastest(
    rows: Iterable[Row], answers: Mapping[str, Sequence[Answer]], figure: Figure
) -> Row | None:
    """Return the row with the smallest median; None of no rows."""
    known = [row for row in rows if answers.get(row.name)]
    return min(known, key=lambda row: median(answers[row.name], figure) or 0.0, default=None)


def kept(answers: Sequence[Answer], whole: Answer | None) -> list[float] | None:
    """Return the share of the visual tokens that each pruning stage leaves; None if not told.

    Of the first answer: pictures of one size have as many tokens, and stages keep as many.

    Args:
        answers: of one row.
        whole: another row's answer to the first question, which tells the visual tokens and the
            length of the whole prompt. A row that tells the length of its pruned prompt alone
            (OpenVINO GenAI) left what the difference leaves.
    """
    first = next(iter(answers), None)
    if first is None:
        return None
    if first.num_kept is not None and first.num_visual_tokens:
        return [number / first.num_visual_tokens for number in first.num_kept]
    if whole is None or None in (whole.num_prompt_tokens, first.num_prompt_tokens):
        return None
    num_removed = (whole.num_prompt_tokens or 0) - (first.num_prompt_tokens or 0)
    num_visual = whole.num_visual_tokens or 0
    return [1 - num_removed / num_visual] if 0 < num_removed < num_visual else None


def bars(
    rows: Sequence[Row], answers: Mapping[str, Sequence[Answer]]
) -> list[tuple[str, str, str, float, float]]:
    """Return what has to hold: claim, our row, their row, the ratio, and what it may be.

    Rows that were not measured leave out the claims about them.
    """
    ours = [row for row in rows if row.is_ours]
    pruned = [row for row in ours if row.keep_ratio is not None]
    unpruned = [row for row in rows if not row.is_ours and row.keep_ratio is None]
    rivals = [row for row in rows if not row.is_ours and row.keep_ratio is not None]
    everyone = [*unpruned, *rivals]
    found = []

    def claim(name: str, us: list[Row], them: list[Row], figure: Figure, limit: float) -> None:
        best, rival = fastest(us, answers, figure), fastest(them, answers, figure)
        if best is not None and rival is not None:
            value = ratio(answers[best.name], answers[rival.name], figure)
            found.append((name, best.name, rival.name, value, limit))

    claim("TTFT, pruned by the fastest unpruned peer", pruned, unpruned, "ttft_ms", 0.5)
    claim("TTFT, pruned by the fastest pruned peer", pruned, rivals, "ttft_ms", 0.75)
    claim("TPOT, pruned by the fastest peer", pruned, everyone, "tpot_ms", 1.0)
    for bits in get_args(Precision):
        claim(
            f"TTFT, both unpruned, weights of {bits} bits",
            [row for row in ours if row.keep_ratio is None and row.precision == bits],
            [row for row in unpruned if row.precision == bits],
            "ttft_ms",
            1.0,
        )
    return found
