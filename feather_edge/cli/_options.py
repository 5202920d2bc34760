"""What several commands share: option types, groups of options, the one JSON document."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click
from click.core import ParameterSource

from feather_edge.cli._parsers import parse_names, parse_ratios, parse_region, parse_stages
from feather_edge.errors import RequestError
from feather_edge.recipes import CriterionName, PreCriterionName, SelectionName
from feather_edge.runtime.backend_names import BACKEND_NAMES, GRAPH_BACKENDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from feather_edge.bundle import Bundle

__all__ = [
    "BACKENDS",
    "TASK_OPTIONS",
    "Callback",
    "all_of",
    "backend_option",
    "backend_options",
    "box_format_option",
    "cuda_graphs_option",
    "deadline_option",
    "emit_json",
    "engine_run_options",
    "is_typed",
    "json_option",
    "only_given",
    "pruning_options",
    "refuse_typed",
    "region_options",
    "require_stages",
    "sampling_options",
    "stages_option",
    "target_option",
    "task_options",
    "typed_command",
]

BACKENDS = BACKEND_NAMES

Callback = TypeVar("Callback", bound="Callable[..., Any]")


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
        _pre_pruning_options(default=default),
    )


def _pre_pruning_options(*, default: str) -> Callable[[Callback], Callback]:
    return all_of(
        click.option(
            "--pre-prune",
            type=click.Choice(get_args(PreCriterionName)),
            show_default=default,
            help="Criterion that drops visual tokens before the decoder, by their features.",
        ),
        click.option(
            "--pre-keep-ratio",
            type=click.FloatRange(0, 1, min_open=True),
            metavar="R",
            show_default=default,
            help="Share of the visual tokens that --pre-prune lets into the decoder.",
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


region_options = all_of(
    click.option(
        "--protect",
        multiple=True,
        callback=parse_region,
        metavar="[N:]X0,Y0,X1,Y1",
        help="Box in pixels of the (Nth) picture whose visual tokens are kept at every stage; may "
        "be repeated.",
    ),
    click.option(
        "--forbid",
        multiple=True,
        callback=parse_region,
        metavar="[N:]X0,Y0,X1,Y1",
        help="Box whose visual tokens are never kept; may be repeated.",
    ),
)

deadline_option = click.option(
    "--deadline-ms",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MS",
    help="Keep as much as lets the first token come within this time, by what `tune` has measured "
    "on this device; in place of the pruning options.",
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

TASK_OPTIONS = ("data", "images", "split", "truth_boxes", "ask", "limit")
"""Parameters of ``task_options`` beside the task itself."""

task_options = all_of(
    click.option(
        "--task",
        metavar="scenes|refcoco|coarse|FILE",
        default="scenes",
        help="scenes: generated pictures that the shipped model never saw. refcoco: the places "
        "asked for in --data. coarse: the questions with an answer in words, of the scenes or of "
        "--data. FILE: all of a .jsonl or .json file; see docs/evaluation.md.",
    ),
    click.option(
        "--data",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="File of refcoco or coarse: entries as RefCOCO, LLaVA or Qwen dumps have them.",
    ),
    click.option(
        "--images",
        type=click.Path(path_type=Path),
        show_default="the file's",
        help="Folder of a file's pictures.",
    ),
    click.option(
        "--split",
        metavar="NAME",
        show_default="test; of a file, all",
        help="Of the scenes: development (for choices) or test. Of a file: entries whose split is "
        "NAME.",
    ),
    click.option(
        "--truth-boxes",
        metavar="pixels|xywh|0-1|0-1000|location-tokens:N",
        show_default="pixels",
        help="How a file writes boxes; all but xywh are x0, y0, x1, y1.",
    ),
    click.option(
        "--ask",
        metavar="TEXT",
        show_default="Where is {}?",
        help="Question about an expression of a file, {} in its place.",
    ),
    click.option(
        "--limit",
        type=click.IntRange(min=1),
        show_default="500 scenes, all entries",
        help="Take the first samples only.",
    ),
)

box_format_option = click.option(
    "--box-format",
    type=click.Choice(("location-tokens", "pixels", "0-1", "0-100", "0-1000")),
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

cuda_graphs_option = click.option(
    "--no-cuda-graphs",
    "cuda_graphs",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Launch every kernel of a decode step of TensorRT anew, for comparison.",
)

engine_run_options = all_of(target_option, cuda_graphs_option)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document instead of text."
)


def only_given(**options: Any) -> dict[str, Any]:
    """Return the options that were given: None stands for "not given"."""
    return {name: value for name, value in options.items() if value is not None}


def typed_command(ctx: click.Context) -> str:
    """Return the command as it was typed but for ``--json``, options in the order of its help."""
    words = []
    for param in ctx.command.params:
        value = ctx.params.get(param.name or "")
        if param.name == "as_json" or not is_typed(ctx, param.name or "") or value is False:
            continue
        text = [str(each) for each in value] if isinstance(value, tuple) else [str(value)]
        if isinstance(param, click.Argument):
            words += text
        elif value is True:
            words.append(param.opts[-1])
        else:
            words += [param.opts[-1], ",".join(text)]
    return shlex.join(["feather-edge", str(ctx.info_name), *words])


def is_typed(ctx: click.Context, name: str) -> bool:
    """Return whether a parameter was given rather than left at its default."""
    return ctx.get_parameter_source(name) in {
        ParameterSource.COMMANDLINE,
        ParameterSource.ENVIRONMENT,
    }


def refuse_typed(ctx: click.Context, names: Iterable[str], *, why: str) -> None:
    """Refuse parameters that were given in vain: who typed them expects something of them.

    Args:
        ctx: of the command.
        names: of its parameters.
        why: goes on after "has no effect".

    Raises:
        UsageError: naming the first option that was given.
    """
    flags = {param.name: max(param.opts, key=len) for param in ctx.command.params}
    for name in names:
        if is_typed(ctx, name):
            raise click.UsageError(f"{flags[name]} has no effect {why}")


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
