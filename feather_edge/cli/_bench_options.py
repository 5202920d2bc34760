"""The options of ``bench``, in groups, and what they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from feather_edge.cli._options import all_of, only_given
from feather_edge.cli._parsers import parse_duration, parse_limits

if TYPE_CHECKING:
    from feather_edge.bench.requests import Requests
    from feather_edge.bundle import Bundle

__all__ = [
    "measure_options",
    "measuring_options",
    "picture_options",
    "request_options",
    "requests_of",
    "soak_options",
    "threads_option",
]

OF_A_SOAK = ("seed", "backend", "target", "num_threads")

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

threads_option = click.option(
    "--threads",
    "num_threads",
    type=click.IntRange(min=1),
    show_default="the backend's own choice",
    help="Threads of one graph run, on the CPU.",
)


def requests_of(*, image: Path | None, prompt: str | None, seed: int) -> Requests:
    """Return what is asked while the clock runs: a picture of one's own, or generated scenes.

    Raises:
        UsageError: if only one of picture and prompt is given.
    """
    from feather_edge.bench import picture_requests, scene_requests

    if (image is None) != (prompt is None):
        raise click.UsageError("--image and --prompt go together")
    if image is None or prompt is None:
        return scene_requests(seed=seed)
    return picture_requests(image, prompt, seed=seed)


def measure_options(
    bundle: Bundle,
    *,
    image: Path | None,
    prompt: str | None,
    prune: str | None,
    pre_prune: str | None,
    seed: int | None,
    backend: str,
    target: str | None,
    num_threads: int | None,
    max_new_tokens: int | None,
    warmup: int | None,
    repeat: int | None,
    **pruning: Any,
) -> dict[str, Any]:
    """Return the arguments of ``feather_edge.bench.benchmark`` that options stand for.

    Raises:
        UsageError: if only one of picture and prompt is given.
    """
    from feather_edge.pruning.overrides import override
    from feather_edge.runtime.session import default_pruning

    asked = {"criterion": prune, "pre_criterion": pre_prune, "seed": seed, **pruning}
    effective = override(default_pruning(bundle), **only_given(**asked))
    return {
        "requests": requests_of(image=image, prompt=prompt, seed=effective.seed),
        "pruning": effective,
        "backend": backend,
        "target": target,
        "num_threads": num_threads,
        "max_new_tokens": max_new_tokens,
        **only_given(warmup=warmup, repeat=repeat),
    }


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
