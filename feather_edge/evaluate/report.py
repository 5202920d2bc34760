"""The report of an evaluation: ``summary.json``, ``report.md``, and the plots when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from feather_edge import strict_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from feather_edge.evaluate.summary import Evaluation

__all__ = ["COLUMNS", "table_rows", "write_report"]

COLUMNS = (
    "method", "keep ratio", "tokens", "FLOPs", "localisation", "mean IoU", "coarse",
    "kept row",
)  # fmt: skip

NOTES = (
    "`keep ratio` is FEATHER's parameter. {budget} `tokens` are the visual ones that entered each "
    "segment (mean). `FLOPs` are those of the decoder's prefill, text tokens included, by the "
    "unpruned ones. Localisation is right when the boxes overlap by at least 0.5, a coarse answer "
    "when it is the very word. In brackets: 95 % intervals (Wilson). `kept row` is how far down "
    "the picture the tokens are that the first stage kept, on average: 0 is the top, 1 the "
    "bottom, 0.5 no preference.\n"
)
BUDGETS = {
    "equal": "At one ratio every method keeps as many tokens at every stage as FEATHER does; one "
    "before the decoder (`pre-`) keeps as many as make the prefill cost the same.",
    "own": "Each method takes it as its own parameter, so methods differ in FLOPs.",
}


def table_rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """Return the cells of ``COLUMNS`` for every method and ratio."""
    return [
        (
            row.method,
            "" if row.method == "none" else f"{row.keep_ratio:g}",
            ">".join(f"{count:.0f}" for count in row.num_visual_tokens),
            f"{row.flops_ratio:.2f}",
            _number(row.localisation_acc) + _interval(row.ci95.localisation_acc),
            _number(row.mean_iou),
            _number(row.coarse_acc) + _interval(row.ci95.coarse_acc),
            f"{row.mean_kept_row:.2f}",
        )
        for row in evaluation.rows
    ]


def write_report(evaluation: Evaluation, output: Path, *, plots: Sequence[Path] = ()) -> None:
    """Write ``summary.json`` and ``report.md``; the latter shows ``plots``."""
    (output / "summary.json").write_bytes(strict_json.dumps(evaluation))
    stated = evaluation.conditions
    lines = [
        f"# {evaluation.task} on {stated.bundle_source}",
        "",
        _conditions(evaluation),
        "",
        *_markdown(COLUMNS, table_rows(evaluation)),
        "",
        NOTES.format(budget=BUDGETS[stated.budget]),
        *_topics(evaluation),
        *(f"![{plot.stem}]({plot.name})" for plot in plots),
    ]
    (output / "report.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _conditions(evaluation: Evaluation) -> str:
    stated = evaluation.conditions
    return (
        f"{evaluation.num_samples} samples: {evaluation.num_localisation} localisation and "
        f"{evaluation.num_coarse} coarse questions. Pruned before layers "
        f"{', '.join(map(str, stated.stages))}; stride {stated.stride}, selection "
        f"{stated.selection}, seed {stated.seed}, backend {stated.backend}, feather-edge "
        f"{stated.feather_edge_version}."
    )


def _topics(evaluation: Evaluation) -> list[str]:
    """Return the table of accuracies by topic, empty where questions have none."""
    topics = list(evaluation.rows[0].topic_acc)
    if not topics:
        return []
    rows = [
        (name, ratio, *(_number(row.topic_acc[topic]) for topic in topics))
        for (name, ratio, *_), row in zip(table_rows(evaluation), evaluation.rows, strict=True)
    ]
    return ["Accuracy by topic:", "", *_markdown(("method", "keep ratio", *topics), rows), ""]


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---"] + ["---:"] * (len(columns) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(value: tuple[float, float] | None) -> str:
    return "" if value is None else f" ({value[0]:.2f}-{value[1]:.2f})"
