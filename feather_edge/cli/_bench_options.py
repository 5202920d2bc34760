"""The options of ``bench``, in groups, and what they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from feather_edge.cli._options import (
    all_of,
    backend_options,
    cuda_graphs_option,
    only_given,
)
from feather_edge.cli._parsers import parse_duration, parse_limits

if TYPE_CHECKING:
    from feather_edge.bench import Settings
    from feather_edge.bench.requests import Requests
    from feather_edge.bundle import Bundle

__all__ = [
    "asked_requests",
    "measuring_options",
    "picture_options",
    "request_options",
    "running_options",
    "settings_of",
    "soak_options",
]

OF_A_SOAK = ("seed", "backend", "target", "num_threads", "cuda_graphs")

picture_options = all_of(
    click.option(
        "--image",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        show_default="generated scenes",
        help="Picture to ask about; one pixel is another in each request. Goes with --prompt.",
    ),
    click.option("--prompt", help="What to ask; goes with --image."),
)

request_options = all_of(
    picture_options,
    click.option(
        "--max-new-tokens",
        type=click.IntRange(min=1),
        show_default="the checkpoint's own, or 128",
        help="Stop each answer after this many tokens.",
    ),
)

measuring_options = all_of(
    click.option(
        "--warmup",
        type=click.IntRange(min=0),
        show_default="3",
        help="Rounds before the first that counts; a round asks unpruned and pruned.",
    ),
    click.option(
        "--repeat", type=click.IntRange(min=1), show_default="20", help="Rounds that count."
    ),
    click.option(
        "--plot",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Draw where the time to the first token goes, as .png or .svg (extra `viz`).",
    ),
    click.option(
        "--fail-above",
        "limits",
        multiple=True,
        callback=parse_limits,
        metavar="NAME=VALUE",
        help="End with status 1 above this; may be repeated. Names: ttft_ms, prefill_ms, tpot_ms "
        "(of the pruned request), load_ms, peak_rss_mib, ttft_ratio, prefill_ratio, tpot_ratio.",
    ),
    click.option(
        "--soak",
        "duration_s",
        callback=parse_duration,
        metavar="TIME",
        help="Instead: ask at random for so long, such as 10m, 90s or 2h, cancel some requests "
        "and spoil others, and end with status 1 if memory, threads or files grow, or if an "
        "answer is not that of a fresh session.",
    ),
)

running_options = all_of(
    backend_options,
    cuda_graphs_option,
    click.option(
        "--threads",
        "num_threads",
        type=click.IntRange(min=1),
        show_default="the backend's own choice",
        help="Threads of one graph run, on the CPU.",
    ),
)


def asked_requests(image: Path | None, prompt: str | None, *, seed: int) -> Requests:
    """Return what to ask: about the user's picture, or about generated scenes.

    Raises:
        UsageError: if only one of picture and prompt is given.
    """
    from feather_edge.bench import picture_requests, scene_requests

    if image is not None and prompt is not None:
        return picture_requests(image, prompt, seed=seed)
    if image is not None or prompt is not None:
        raise click.UsageError("--image and --prompt go together")
    return scene_requests(seed=seed)


def settings_of(
    bundle: Bundle,
    *,
    prune: str | None,
    pre_prune: str | None,
    keep_ratio: tuple[float, ...] | None,
    stride: int | None,
    selection: str | None,
    seed: int | None,
    pre_keep_ratio: float | None,
    **options: Any,
) -> Settings:
    """Lay the options that were given over the bundle's own pruning and the defaults."""
    from feather_edge.bench import Settings
    from feather_edge.pruning.overrides import override
    from feather_edge.runtime.session import default_pruning

    asked = only_given(
        criterion=prune,
        keep_ratio=keep_ratio,
        stride=stride,
        selection=selection,
        seed=seed,
        pre_criterion=pre_prune,
        pre_keep_ratio=pre_keep_ratio,
    )
    pruning = override(default_pruning(bundle), **asked)
    return Settings(pruning=pruning, **only_given(**options))


def soak_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``feather_edge.bench.soak.soak`` that options stand for.

    Raises:
        UsageError: if an option is given that a soak chooses at random, or has no use for.
    """
    others = [
        name for name in options if options[name] not in (None, {}) and name not in OF_A_SOAK
    ]
    if others:
        flag = {"limits": "fail-above"}.get(others[0], others[0].replace("_", "-"))
        raise click.UsageError(f"--{flag} has no effect on --soak; leave it out")
    return only_given(**{name: options[name] for name in OF_A_SOAK})
