"""What several commands share: option types, groups of options, the one JSON document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from feather_edge.errors import RequestError
from feather_edge.recipes import CriterionName, SelectionName
from feather_edge.runtime.backend_names import BACKEND_NAMES, GRAPH_BACKENDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from feather_edge.bundle import Bundle

__all__ = [
    "BACKENDS",
    "Callback",
    "all_of",
    "backend_option",
    "backend_options",
    "box_format_option",
    "emit_json",
    "json_option",
    "only_given",
    "parse_names",
    "parse_ratios",
    "parse_stages",
    "pruning_options",
    "require_stages",
    "sampling_options",
    "stages_option",
    "target_option",
]

BACKENDS = BACKEND_NAMES

Callback = TypeVar("Callback", bound="Callable[..., Any]")


def parse_ratios(
    ctx: click.Context,  # noqa: ARG001 - click's own
    param: click.Parameter,  # noqa: ARG001 - click's own
    value: str | None,
) -> tuple[float, ...] | None:
    """Parse ``0.5,0.25``: one or more ratios in (0, 1].

    Raises:
        click.BadParameter: naming what is wrong and what is allowed.
    """
    if value is None:
        return None
    try:
        ratios = tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not a list of numbers such as 0.5 or 0.5,0.25"
        ) from None
    for ratio in ratios:
        if not 0 < ratio <= 1:
            raise click.BadParameter(f"{ratio:g} is out of range; a ratio must be in (0, 1]")
    return ratios


def parse_names(
    ctx: click.Context,  # noqa: ARG001 - click's own
    param: click.Parameter,  # noqa: ARG001 - click's own
    value: str | None,
) -> tuple[str, ...] | None:
    """Parse ``feather,fastv``, or ``all``: criteria.

    Raises:
        click.BadParameter: naming what is wrong and what is allowed.
    """
    known = get_args(CriterionName)
    if value is None or value == "all":
        return None if value is None else tuple(name for name in known if name != "none")
    names = tuple(part.strip() for part in value.split(","))
    for name in names:
        if name not in known:
            raise click.BadParameter(f"{name!r} is not one of all, {', '.join(known)}")
    return names


def parse_stages(
    ctx: click.Context,  # noqa: ARG001 - click's own
    param: click.Parameter,  # noqa: ARG001 - click's own
    value: str | None,
) -> tuple[int, ...] | None:
    """Parse ``8,16``: decoder layers, or ``none`` for an unsplit decoder.

    Raises:
        click.BadParameter: naming what is wrong and what is allowed.
    """
    if value is None:
        return None
    try:
        return () if value == "none" else tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not a list of layers such as 8,16, nor none"
        ) from None


def all_of(*options: Callable[[Callback], Callback]) -> Callable[[Callback], Callback]:
    """Join decorators into one; help shows the options in this order."""

    def add(callback: Callback) -> Callback:
        for option in reversed(options):
            callback = option(callback)
        return callback

    return add


def pruning_options(
    *, default: str, takes_several: bool = False
) -> Callable[[Callback], Callback]:
    """Add the options that choose a pruning.

    Args:
        default: says where values left out come from.
        takes_several: whether ``--prune`` is a list of criteria.
    """
    one = click.option(
        "--prune",
        type=click.Choice(get_args(CriterionName)),
        show_default=default,
        help="Criterion that ranks the visual tokens.",
    )
    several = click.option(
        "--prune",
        callback=parse_names,
        metavar="all|NAME[,NAME...]",
        show_default=default,
        help=f"Criteria that rank the visual tokens: {', '.join(get_args(CriterionName))}.",
    )
    return all_of(
        several if takes_several else one,
        click.option(
            "--keep-ratio",
            callback=parse_ratios,
            metavar="R[,R...]",
            show_default=default,
            help="One value: the method's own parameter. Several: share of all visual tokens kept "
            "after each stage.",
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
            help="fill: a constant count. union: as in the paper, the count depends on the image.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(min=0),
            show_default=default,
            help="Of everything random.",
        ),
    )


def stages_option(*, default: str, help_text: str) -> Callable[[Callback], Callback]:
    """Add ``--stages``."""
    return click.option(
        "--stages",
        callback=parse_stages,
        metavar="LAYER[,LAYER...]|none",
        show_default=default,
        help=help_text,
    )


sampling_options = all_of(
    click.option(
        "--temperature",
        type=click.FloatRange(min=0),
        show_default="0",
        help="0 always takes the likeliest token; more samples more widely.",
    ),
    click.option(
        "--top-p",
        type=click.FloatRange(0, 1, min_open=True),
        show_default="1",
        help="Sample among the likeliest tokens that together have this probability.",
    ),
    click.option(
        "--max-new-tokens",
        type=click.IntRange(min=1),
        show_default="the checkpoint's own, or 128",
        help="Stop after this many tokens.",
    ),
)

box_format_option = click.option(
    "--box-format",
    type=click.Choice(("location-tokens", "pixels", "0-1", "0-1000")),
    show_default="location tokens, where the model has them",
    help="How the model writes boxes: always x0, y0, x1, y1 of the picture as it sees it.",
)

backend_option = click.option(
    "--backend", type=click.Choice(GRAPH_BACKENDS), default="auto", help="What runs the graphs."
)

target_option = click.option(
    "--target",
    metavar="NAME",
    show_default="the only one there is",
    help="Whose engines a TensorRT backend runs, as build-engine --target had it.",
)

backend_options = all_of(
    click.option(
        "--backend",
        type=click.Choice(BACKENDS),
        default="auto",
        help="What runs the graphs, or their engines.",
    ),
    target_option,
)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document instead of text."
)


def only_given(**options: Any) -> dict[str, Any]:
    """Return the options that were given: None stands for "not given"."""
    return {name: value for name, value in options.items() if value is not None}


def require_stages(bundle: Bundle, stages: tuple[int, ...] | None) -> None:
    """Refuse stages other than the bundle's own: they cannot change after the export.

    Raises:
        RequestError: naming both, and the export that would make it possible.
    """
    own = bundle.schedule.stages
    if stages is not None and stages != own:
        wanted = ",".join(map(str, stages)) or "none"
        raise RequestError(
            f"{bundle.path} prunes before layers {','.join(map(str, own)) or 'none'}, which its "
            f"export fixed; for others use: feather-edge export CHECKPOINT -o BUNDLE "
            f"--stages {wanted}"
        )


def emit_json(document: Any) -> None:
    """Print one JSON document on stdout, on one line: runs can be appended to one file."""
    import msgspec

    click.echo(msgspec.json.encode(document).decode())
