"""What several commands share: option types, groups of options, the one JSON document."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from feather_edge.recipes import CriterionName, SelectionName

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "BACKENDS",
    "RATIOS",
    "STAGES",
    "emit_json",
    "json_option",
    "only_given",
    "pruning_options",
]

BACKENDS = ("auto", "onnxruntime")

Callback = TypeVar("Callback", bound="Callable[..., Any]")


class Ratios(click.ParamType):
    """One or more ratios in (0, 1], separated by commas."""

    name = "ratios"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Parse ``0.5,0.25``."""
        if isinstance(value, tuple):
            return value
        try:
            ratios = tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 0.5 or 0.5,0.25", param, ctx)
        for ratio in ratios:
            if not 0 < ratio <= 1:
                self.fail(f"{ratio:g} is out of range; a ratio must be in (0, 1]", param, ctx)
        return ratios


class Stages(click.ParamType):
    """Decoder layers separated by commas, or ``none`` for an unsplit decoder."""

    name = "layers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Parse ``8,16``."""
        if isinstance(value, tuple):
            return value
        if value == "none":
            return ()
        try:
            return tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of layers such as 8,16, nor none", param, ctx)


RATIOS = Ratios()
STAGES = Stages()


def pruning_options(*, default: str) -> Callable[[Callback], Callback]:
    """Add the options that choose a pruning; `default` says where values left out come from."""

    def add(callback: Callback) -> Callback:
        for option in reversed(
            (
                click.option(
                    "--prune",
                    type=click.Choice(get_args(CriterionName)),
                    show_default=default,
                    help="Criterion that ranks the visual tokens.",
                ),
                click.option(
                    "--keep-ratio",
                    type=RATIOS,
                    metavar="R[,R...]",
                    show_default=default,
                    help="One value: the method's own parameter. Several: share of all visual "
                    "tokens kept after each stage.",
                ),
                click.option(
                    "--stride",
                    type=click.IntRange(min=0),
                    show_default=default,
                    help="Step of FEATHER's uniform grid, in tokens; 0 for no grid.",
                ),
                click.option(
                    "--selection",
                    type=click.Choice(get_args(SelectionName)),
                    show_default=default,
                    help="fill: a constant count. union: as in the paper, the count depends on "
                    "the image.",
                ),
                click.option(
                    "--seed",
                    type=click.IntRange(min=0),
                    show_default=default,
                    help="Of everything random.",
                ),
            )
        ):
            callback = option(callback)
        return callback

    return add


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document instead of text."
)


def only_given(**options: Any) -> dict[str, Any]:
    """Return the options that were given: None stands for "not given"."""
    return {name: value for name, value in options.items() if value is not None}


def emit_json(document: Any) -> None:
    """Print one JSON document, indented, on stdout."""
    import msgspec

    data = msgspec.json.format(msgspec.json.encode(document), indent=2)
    click.echo(data.decode(), file=sys.stdout)
