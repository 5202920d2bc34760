"""``feather-edge verify --precision-report``: its options, and how its outcome is printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from feather_edge.cli._options import all_of, emit_json
from feather_edge.cli._progress import counting_bar
from feather_edge.cli._tables import mebibytes, print_table

if TYPE_CHECKING:
    from feather_edge.evaluate.precision_report import PrecisionReport

__all__ = ["REPORT_OPTIONS", "precision_report_options", "run_precision_report"]

DEFAULT_LIMIT = 100
REPORT_OPTIONS = ("reference", "task", "limit", "text")
"""Parameters that ``precision_report_options`` adds."""

precision_report_options = all_of(
    click.option(
        "--precision-report",
        "reference",
        type=click.Path(path_type=Path),
        metavar="BUNDLE",
        help="Measure instead what precision costs: compare with this bundle of the same "
        "checkpoint, in fp32, on ONNX Runtime; --backend is what runs BUNDLE.",
    ),
    click.option(
        "--task",
        metavar="scenes|FILE.jsonl|none",
        show_default="scenes",
        help="With --precision-report: questions to answer, as of `feather-edge eval`.",
    ),
    click.option(
        "--limit",
        type=click.IntRange(min=1),
        show_default=str(DEFAULT_LIMIT),
        help="With --precision-report: pictures of the task.",
    ),
    click.option(
        "--text",
        type=click.Path(path_type=Path),
        help="With --precision-report: also a text to predict, for its perplexity.",
    ),
)


def run_precision_report(
    bundle: Path,
    backend: str | None,
    *,
    reference: Path,
    task: str | None,
    limit: int | None,
    text: Path | None,
    as_json: bool,
) -> None:
    """Measure and print."""
    from feather_edge.bundle import Bundle
    from feather_edge.evaluate.precision_report import report_precision
    from feather_edge.evaluate.tasks import load_task

    loaded = None if task == "none" else load_task(task or "scenes", limit=limit or DEFAULT_LIMIT)
    with counting_bar("pictures") as on_progress:
        report = report_precision(
            Bundle.open(bundle),
            Bundle.open(reference),
            task=loaded,
            text=text,
            backend=backend or "onnxruntime",
            on_progress=on_progress,
        )
    if as_json:
        emit_json(report)
    else:
        print_table(
            f"{report.bundle}: {report.precision}", ("", "here", "reference"), _rows(report)
        )


def _rows(report: PrecisionReport) -> list[tuple[str, str, str]]:
    rows = [
        ("precision", report.precision, report.reference_precision),
        ("backend", report.backend, "onnxruntime"),
        (
            "weights, MiB",
            f"{mebibytes(report.weight_bytes):.1f}",
            f"{mebibytes(report.reference_weight_bytes):.1f}",
        ),
    ]
    if report.logits is not None:
        logits = report.logits
        rows += [
            (f"logits of {logits.num_positions} tokens, mean cosine",
             f"{logits.mean_cosine:.5f}", ""),
            ("  lowest cosine", f"{logits.lowest_cosine:.5f}", ""),
            ("  next token agrees", f"{logits.next_token_agreement:.2%}", ""),
        ]  # fmt: skip
    if report.answers is not None:
        answers = report.answers
        rows.append(
            (f"{answers.num_questions} answers of {answers.task}, equal",
             f"{answers.agreement:.2%}", "")
        )  # fmt: skip
        if answers.accuracy is not None and answers.reference_accuracy is not None:
            rows.append(
                ("  right", f"{answers.accuracy:.2%}", f"{answers.reference_accuracy:.2%}")
            )
            rows.append(("  relative loss", f"{answers.relative_loss or 0:.2%}", ""))
    if report.text is not None:
        text = report.text
        rows += [
            (f"{text.file}, {text.num_positions} tokens, perplexity",
             f"{text.perplexity:.3f}", f"{text.reference_perplexity:.3f}"),
            ("  relative loss", f"{text.relative_loss:.2%}", ""),
            ("  mean cosine of logits", f"{text.mean_cosine:.5f}", ""),
            ("  next token agrees", f"{text.next_token_agreement:.2%}", ""),
        ]  # fmt: skip
    return rows
