"""The options of ``build-engine`` that stand for a key of its recipe, named as Polygraphy does."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import click

from feather_edge.cli._options import all_of
from feather_edge.cli._parsers import parse_ratios, parse_words
from feather_edge.recipes import EngineBackend, EngineOpset, EngineProfiles

if TYPE_CHECKING:
    from collections.abc import Callable

    from feather_edge.cli._options import Callback

__all__ = ["limit_options", "recipe_options"]

_FROM_TARGET = "from the target"


def _limit(
    flag: str, help_text: str, *, least: int = 1, most: int | None = None
) -> Callable[[Callback], Callback]:
    kind = click.IntRange(min=least, max=most)
    return click.option(flag, type=kind, show_default=_FROM_TARGET, help=help_text)


limit_options = all_of(
    _limit("--max-prompt-tokens", "Text tokens of a prompt, beside the visual ones."),
    _limit("--max-visual-tokens", "Visual tokens of all images of a request."),
    _limit("--max-cache-capacity", "Tokens of prompt and answer together, before pruning."),
    _limit("--max-batch-size", "Sequences at once."),
    click.option(
        "--max-keep-ratio",
        callback=parse_ratios,
        metavar="R[,R...]",
        show_default=_FROM_TARGET,
        help="Largest share of visual tokens that may go on after each stage; less than 1 saves "
        "memory and refuses requests that keep more.",
    ),
    _limit("--opt-prompt-tokens", "Text tokens that the engines are tuned for."),
    click.option(
        "--profiles",
        type=click.Choice(get_args(EngineProfiles)),
        show_default=_FROM_TARGET,
        help="two: decoder engines tuned for prefill and for decode, weights stored for each. "
        "one: tuned for prefill, weights stored once.",
    ),
)

recipe_options = all_of(
    click.option(
        "--backend",
        type=click.Choice(get_args(EngineBackend)),
        show_default=_FROM_TARGET,
        help="Which TensorRT builds and runs the engines.",
    ),
    click.option(
        "--compute-capabilities",
        callback=parse_words,
        metavar="N.N[,N.N...]",
        show_default=_FROM_TARGET,
        help="GPUs to build for, such as 8.7; TensorRT itself builds for the one at hand.",
    ),
    click.option(
        "--tensorrt-version",
        metavar="N.N",
        show_default=_FROM_TARGET,
        help="Version that a dry run plans for where none is installed.",
    ),
    click.option(
        "--opset",
        type=click.Choice(get_args(EngineOpset)),
        show_default=_FROM_TARGET,
        help="Form of the graphs; auto takes the newest that the TensorRT version reads.",
    ),
    limit_options,
    _limit(
        "--builder-optimization-level",
        "0 builds fastest, 5 searches longest for fast engines.",
        least=0,
        most=5,
    ),
    click.option(
        "--pool-limit",
        callback=parse_words,
        metavar="POOL:SIZE[,...]",
        show_default=_FROM_TARGET,
        help="Memory of the builder's pools, such as workspace:2G,tactic_dram:1G.",
    ),
    click.option(
        "--shared-memory-mib",
        type=click.IntRange(min=1),
        show_default=_FROM_TARGET,
        help="Memory that CPU and GPU share; a model that needs more is refused.",
    ),
    click.option(
        "--system-memory-mib",
        type=click.IntRange(min=0),
        show_default=_FROM_TARGET,
        help="What of it the system itself takes.",
    ),
    click.option(
        "--timing-cache",
        metavar="PATH",
        show_default="the user's cache folder",
        help="Folder of timing caches, or a .cache file; read if present, written after.",
    ),
)
