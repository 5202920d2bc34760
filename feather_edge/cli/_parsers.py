"""Option values that are lists or special words, parsed and refused in one place each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast, get_args

import click

from feather_edge.errors import RequestError
from feather_edge.recipes import CriterionName, PreCriterionName

if TYPE_CHECKING:
    from collections.abc import Callable

    from feather_edge.pruning.regions import Region, RegionRule

__all__ = [
    "parse_arch",
    "parse_duration",
    "parse_limits",
    "parse_methods",
    "parse_names",
    "parse_plugin",
    "parse_ratios",
    "parse_region",
    "parse_stages",
    "parse_words",
]

Item = TypeVar("Item")


def _split(value: str, item: Callable[[str], Item], *, expected: str) -> tuple[Item, ...]:
    """Parse ``a,b``.

    Raises:
        click.BadParameter: saying that the value is not ``expected``.
    """
    try:
        return tuple(item(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of {expected}") from None


def parse_words(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[str, ...] | None:
    """Parse ``a,b``; what the words may be is for the recipe to say."""
    return None if value is None else tuple(word for word in value.split(",") if word)


def parse_arch(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """Parse ``87,110``.

    Raises:
        click.BadParameter: naming what is wrong and what is allowed.
    """
    expected = "compute capabilities times ten, such as 87 or 87,110"
    return None if value is None else _split(value, int, expected=expected)


def parse_ratios(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[float, ...] | None:
    """Parse ``0.5,0.25``: one or more ratios in (0, 1].

    Raises:
        click.BadParameter: naming what is wrong and what is allowed.
    """
    if value is None:
        return None
    ratios = _split(value, float, expected="numbers such as 0.5 or 0.5,0.25")
    for ratio in ratios:
        if not 0 < ratio <= 1:
            raise click.BadParameter(f"{ratio:g} is out of range; a ratio must be in (0, 1]")
    return ratios


def parse_stages(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """Parse ``8,16``: decoder layers, or ``none`` for an unsplit decoder.

    Raises:
        click.BadParameter: naming what is wrong and what is allowed.
    """
    if value is None or value == "none":
        return None if value is None else ()
    return _split(value, int, expected="layers such as 8,16, nor none")


def parse_duration(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Parse ``90s``, ``10m`` or ``2h`` to seconds.

    Raises:
        click.BadParameter: naming what is wrong and what is allowed.
    """
    if value is None:
        return None
    seconds = {"s": 1, "m": 60, "h": 3600}.get(value[-1:])
    try:
        duration_s = float(value[:-1]) * (seconds or 0)
    except ValueError:
        duration_s = 0.0
    if not 0 < duration_s < float("inf"):
        raise click.BadParameter(f"{value!r} is not a time such as 90s, 10m or 2h")
    return duration_s


def parse_limits(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, float]:
    """Parse ``ttft_ms=120``, repeated.

    Raises:
        click.BadParameter: naming what is wrong and what is allowed.
    """
    from feather_edge.bench.report import LIMITS

    limits = {}
    for value in values:
        name, _, limit = value.partition("=")
        try:
            limits[name] = float(limit)
        except ValueError:
            raise click.BadParameter(f"{value!r} is not a limit such as ttft_ms=120") from None
        if name not in LIMITS:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(LIMITS)}")
    return limits


def parse_names(
    ctx: click.Context,
    param: click.Parameter,
    value: str | None,
) -> tuple[str, ...] | None:
    """Parse ``feather,fastv``, or ``all``: criteria.

    Raises:
        click.BadParameter: naming what is wrong and what is allowed.
    """
    known = get_args(CriterionName)
    return _split_names(value, known, all_of_them=_but_none(known))


def parse_methods(
    ctx: click.Context,
    param: click.Parameter,
    value: str | None,
) -> tuple[str, ...] | None:
    """Parse ``feather,pre-dart``, ``all`` or ``recipe``; ``pre-`` are those before the decoder.

    Raises:
        click.BadParameter: naming what is wrong and what is allowed.
    """
    before = (f"pre-{name}" for name in _but_none(get_args(PreCriterionName)))
    every = (*_but_none(get_args(CriterionName)), *before)
    return _split_names(value, (*every, "recipe"), all_of_them=every)


def _but_none(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if name != "none")


def _split_names(
    value: str | None, known: tuple[str, ...], *, all_of_them: tuple[str, ...]
) -> tuple[str, ...] | None:
    if value is None or value == "all":
        return None if value is None else all_of_them
    names = tuple(part.strip() for part in value.split(","))
    for name in names:
        if name not in known:
            raise click.BadParameter(f"{name!r} is not one of all, {', '.join(known)}")
    return names


def parse_region(
    ctx: click.Context,
    param: click.Parameter,
    values: tuple[str, ...],
) -> tuple[Region, ...]:
    """Parse ``x0,y0,x1,y1`` or ``N:x0,y0,x1,y1``; the option's name is the region's rule.

    Raises:
        click.BadParameter: naming what is wrong and what is allowed.
    """
    from feather_edge.pruning.regions import Region

    regions = []
    for value in values:
        image, colon, corners = value.rpartition(":")
        try:
            x0, y0, x1, y1 = map(float, corners.split(","))
            number = int(image) if colon else 1
        except ValueError:
            raise click.BadParameter(
                f"{value!r} is not a box in pixels such as 10,20,110,90, nor 2:10,20,110,90 for "
                f"the second image"
            ) from None
        try:
            rule = cast("RegionRule", param.name)
            regions.append(Region(box=(x0, y0, x1, y1), rule=rule, image=number))
        except RequestError as error:
            raise click.BadParameter(str(error)) from error
    return tuple(regions)


def parse_plugin(
    ctx: click.Context,
    param: click.Parameter,
    value: str,
) -> Path | None:
    """Parse ``none``, ``auto`` or the path of a library.

    Raises:
        click.BadParameter: if the library does not exist.
    """
    if value == "none":
        return None
    if value == "auto":
        from feather_edge.engines.plugin_build import LIBRARY

        path = Path("engines/out") / LIBRARY
        return path if path.is_file() else None
    if not Path(value).is_file():
        raise click.BadParameter(f"{value} is no file; make one with: feather-edge build-plugin")
    return Path(value)
