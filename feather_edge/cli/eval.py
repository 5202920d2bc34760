"""``feather-edge eval``: which criterion to trust, at which keep ratio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from feather_edge.cli._options import (
    TASK_OPTIONS,
    backend_options,
    box_format_option,
    emit_json,
    json_option,
    only_given,
    task_options,
)
from feather_edge.cli._parsers import parse_methods, parse_ratios
from feather_edge.cli._progress import counting_bar
from feather_edge.cli._tables import print_table


@click.command(
    epilog="\b\nExample:\n  feather-edge eval bundle --task scenes --limit 100 -o out "
    "--method feather,fastv --keep-ratio .5,.25"
)
@click.argument("bundle", type=click.Path(path_type=Path))
@task_options
@click.option(
    "--method",
    "methods",
    callback=parse_methods,
    metavar="all|NAME[,NAME...]",
    default="all",
    help="Criteria inside the decoder (as of `run --prune`), and those before it after pre-, such "
    "as pre-divprune; recipe: what the bundle's own does. Unpruned is always compared.",
)
@click.option(
    "--keep-ratio", "keep_ratios", callback=parse_ratios, metavar="R[,R...]",
    default=".75,.5,.25,.1", help="FEATHER's parameter, one table row each.",
)  # fmt: skip
@click.option(
    "--budget", type=click.Choice(("equal", "own")), default="equal",
    help="equal: every method keeps as many tokens at every stage as FEATHER does, or costs as "
    "much. own: the ratio is each method's own parameter.",
)  # fmt: skip
@box_format_option
@click.option("--seed", type=click.IntRange(min=0), show_default="the bundle's",
              help="Of everything random.")  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True,
    help="Folder of answers and report; a run that was stopped goes on from it.",
)  # fmt: skip
@click.option("-f", "--force", is_flag=True, help="Forget the answers in the folder.")
@click.option("--plot", is_flag=True, help="Draw accuracy against cost, too (extra `viz`).")
@backend_options
@json_option
def command(
    *, bundle: Path, task: str, output: Path, plot: bool, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Compare criteria at several keep ratios.

    Asks BUNDLE questions with known answers, unpruned and pruned. Writes every answer
    (samples.jsonl), summary.json and report.md, plots if asked for, and prints the table.
    """
    from feather_edge.evaluate.comparison import Comparison
    from feather_edge.evaluate.evaluation import evaluate
    from feather_edge.evaluate.plots import require_matplotlib, write_plots
    from feather_edge.evaluate.report import COLUMNS, table_rows, write_report
    from feather_edge.evaluate.tasks import load_task

    if plot:
        require_matplotlib()
    names = ("methods", "keep_ratios", "budget", "seed")
    comparison = Comparison(**only_given(**{name: options.pop(name) for name in names}))
    loaded = load_task(task, **{name: options.pop(name) for name in TASK_OPTIONS})
    with counting_bar("samples") as on_progress:
        evaluation = evaluate(
            bundle, loaded, comparison, output=output, on_progress=on_progress, **options
        )
    write_report(evaluation, output, plots=write_plots(evaluation, output) if plot else ())
    if as_json:
        emit_json(evaluation.to_dict())
    else:
        print_table(f"{task}: {len(loaded.samples)} samples", COLUMNS, table_rows(evaluation))
