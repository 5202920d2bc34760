"""The tables of a comparison, in Markdown."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from compare_peers.summary import bars, fastest, kept, median, ratio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from compare_peers.agreement import Agreement, Difference
    from compare_peers.arena import Result
    from compare_peers.contenders import Row
    from compare_peers.runner import Answer


def model_report(name: str, rows: Sequence[Row], result: Result) -> str:
    """Return a model's section: times, who agrees, who is missing, and what has to hold.

    Args:
        name: of the model.
        rows: all of them, also those that were not measured.
        result: what is known of them.
    """
    lines = [f"### {name}", ""]
    if result.answers:
        lines += _times(rows, result.answers, result.agreement)
    if result.agreement:
        lines += _tokens(rows, result.agreement)
    if result.reasons:
        lines += [*(f"- {row}: {reason}" for row, reason in result.reasons.items()), ""]
    if result.answers:
        lines += _bars(rows, result.answers)
    return "\n".join(lines)


def _times(
    rows: Sequence[Row],
    answers: Mapping[str, Sequence[Answer]],
    agreement: Mapping[str, Agreement],
) -> list[str]:
    unpruned_peers = [row for row in rows if not row.is_ours and row.keep_ratio is None]
    best = fastest(unpruned_peers, answers, "ttft_ms")
    lines = [
        "| | visual tokens | TTFT, ms | of it vision | TTFT, ratio | TPOT, ms | same tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    measured = [row for row in rows if answers.get(row.name)]
    first = (given[0] for given in answers.values() if given)
    whole = next((answer for answer in first if answer.num_visual_tokens), None)
    for row in sorted(measured, key=lambda row: median(answers[row.name], "ttft_ms") or 0.0):
        given = answers[row.name]
        agreed = agreement.get(row.name)
        cells = [
            row.name,
            _left(row, given, whole),
            f"{median(given, 'ttft_ms'):.0f}",
            _number(median(given, "vision_ms"), "{:.0f}"),
            "" if best is None else f"{ratio(given, answers[best.name], 'ttft_ms'):.2f}",
            _number(median(given, "tpot_ms"), "{:.1f}"),
            _number(agreed and agreed.share, "{:.0%}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _left(row: Row, answers: Sequence[Answer], whole: Answer | None) -> str:
    """Return the visual tokens that a row's stages leave: as told, else as asked for."""
    if row.keep_ratio is None:
        return "all"
    shares = kept(answers, whole)
    if shares is None:
        return f"{row.keep_ratio:.0%} asked for"
    return ", then ".join(f"{math.floor(share * 100 + 0.5)}%" for share in shares)


def _tokens(rows: Sequence[Row], agreement: Mapping[str, Agreement]) -> list[str]:
    """Return who gave the reference's tokens, and what is known of those that did not."""
    lines = [
        "| greedy tokens, unpruned | same | verdict | first that differs, and how far behind |",
        "|---|---|---|---|",
    ]
    notes = []
    for row in rows:
        agreed = agreement.get(row.name)
        if agreed is None:
            continue
        verdict = agreed.verdict(row.precision)
        differences = "; ".join(_difference(each) for each in agreed.differences) or "-"
        lines.append(f"| {row.name} | {agreed.share:.0%} | {verdict} | {differences} |")
        if row.differs and agreed.differences:
            notes.append(f"- {row.name}: {row.differs}")
    return [*lines, "", *notes, *([""] if notes else [])]


def _difference(each: Difference) -> str:
    if each.rank is None:
        return f"{each.place + 1}: not among its choices"
    return f"{each.place + 1}: choice {each.rank}, {each.behind:.2f}"


def _bars(rows: Sequence[Row], answers: Mapping[str, Sequence[Answer]]) -> list[str]:
    lines = [
        "| what has to hold | ours | theirs | ratio | at most |",
        "|---|---|---|---|---|",
    ]
    for claim, us, them, value, limit in bars(rows, answers):
        verdict = "" if value <= limit else " **missed**"
        lines.append(f"| {claim} | {us} | {them} | {value:.2f}{verdict} | {limit:.2f} |")
    return [*lines, ""]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
