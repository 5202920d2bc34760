"""The options of ``tune``, and the accuracy that they ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from feather_edge.cli._options import TASK_OPTIONS, all_of, refuse_typed
from feather_edge.cli._parsers import parse_methods, parse_ratios

if TYPE_CHECKING:
    from feather_edge.tune import Requirement

__all__ = ["requirement_of", "tuning_options"]

tuning_options = all_of(
    click.option(
        "--budget-ttft-ms",
        type=click.FloatRange(min=0, min_open=True),
        metavar="MS",
        help="Time to the first token to choose a keep ratio for.",
    ),
    click.option(
        "--min-accuracy",
        type=click.FloatRange(0, 1, min_open=True),
        metavar="SHARE",
        help="Share of the unpruned accuracy that must be kept: search the cheapest bundle, "
        "method and keep ratio that do, on one part of the questions, and report on another.",
    ),
    click.option(
        "--accuracy-of",
        type=click.Choice(("both", "localisation", "coarse")),
        default="both",
        help="Kinds of questions whose accuracy must be kept.",
    ),
    click.option(
        "--method",
        "methods",
        callback=parse_methods,
        metavar="all|NAME[,NAME...]",
        show_default="the bundle's own",
        help="Whose ladder, as of `eval`; several to search among with --min-accuracy.",
    ),
    click.option(
        "--keep-ratio",
        "keep_ratios",
        callback=parse_ratios,
        metavar="R[,R...]",
        show_default=".75,.5,.4,.3,.2,.1",
        help="Ladder, as of `eval`; all tokens are always on it.",
    ),
)


def requirement_of(ctx: click.Context, options: dict[str, Any]) -> Requirement | None:
    """Take the options of the accuracy out of ``options``; None where none is asked for.

    Raises:
        UsageError: if one of them is given without the accuracy.
    """
    from feather_edge.tune.search import Requirement, load_halves

    task = {name: options.pop(name) for name in ("task", *TASK_OPTIONS)}
    of, box_format = options.pop("accuracy_of"), options.pop("box_format")
    min_accuracy = options.pop("min_accuracy")
    if min_accuracy is None:
        names = (*task, "accuracy_of", "box_format", "output")
        refuse_typed(ctx, names, why="without --min-accuracy")
        return None
    development, test = load_halves(**task, of=of)
    return Requirement(
        min_accuracy=min_accuracy, of=of, development=development, test=test,
        box_format=box_format,
    )  # fmt: skip
