"""The tables of a comparison, in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compare_peers.summary import bars, fastest, median, ratio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from compare_peers.contenders import Row
    from compare_peers.runner import Answer


def model_report(
    name: str,
    rows: Sequence[Row],
    answers: Mapping[str, Sequence[Answer]],
    agreement: Mapping[str, float],
    reasons: Mapping[str, str],
) -> str:
    """Return a model's section: its rows, then what has to hold.

    Args:
        name: of the model.
        rows: all of them, also those that were not measured.
        answers: by row, one a round.
        agreement: share of the reference's greedy tokens, by row, of unpruned rows.
        reasons: why a row was not measured.
    """
    lines = [f"### {name}", "", *_table(rows, answers, agreement)]
    lines += [f"- {row}: {reason}" for row, reason in reasons.items()]
    lines += [
        "",
        "| what has to hold | ours | theirs | ratio | at most |",
        "|---|---|---|---|---|",
    ]
    for claim, us, them, value, limit in bars(rows, answers):
        verdict = "" if value <= limit else " **missed**"
        lines.append(f"| {claim} | {us} | {them} | {value:.2f}{verdict} | {limit:.2f} |")
    return "\n".join(lines) + "\n"


def _table(
    rows: Sequence[Row],
    answers: Mapping[str, Sequence[Answer]],
    agreement: Mapping[str, float],
) -> list[str]:
    unpruned_peers = [row for row in rows if not row.is_ours and row.keep_ratio is None]
    best = fastest(unpruned_peers, answers, "ttft_ms")
    lines = [
        "| | visual tokens | TTFT, ms | of it vision | TTFT, ratio | TPOT, ms | same tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    measured = [row for row in rows if answers.get(row.name)]
    for row in sorted(measured, key=lambda row: median(answers[row.name], "ttft_ms") or 0.0):
        given = answers[row.name]
        cells: list[Any] = [
            row.name,
            "all" if row.keep_ratio is None else f"{row.keep_ratio:.0%}",
            f"{median(given, 'ttft_ms'):.0f}",
            _number(median(given, "vision_ms"), "{:.0f}"),
            "" if best is None else f"{ratio(given, answers[best.name], 'ttft_ms'):.2f}",
            _number(median(given, "tpot_ms"), "{:.1f}"),
            _number(agreement.get(row.name), "{:.0%}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
