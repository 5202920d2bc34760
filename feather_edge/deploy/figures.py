"""Geometry of the figures on the page, in pixels of a drawing that scales with the window."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Bar", "BarChart", "Part", "Step", "StepChart", "bar_chart", "step_chart"]

WIDTH = 960
STEP_HEIGHT = 200
BAR_HEIGHT, BAR_GAP = 34, 42
LABELLED_SHARE = 0.06
"""Parts of a bar narrower than this share of it have no room for a number."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One segment: a rectangle as wide as its layers and as high as its visual tokens."""

    x: float
    y: float
    width: float
    height: float
    num_tokens: int
    layers: str


class StepChart(msgspec.Struct, frozen=True, kw_only=True):
    """The visual tokens that each layer sees; what is above the steps is saved."""

    width: float
    height: float
    steps: tuple[Step, ...]
    most: int


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a bar; ``label`` is empty where there is no room for it."""

    name: str
    x: float
    width: float
    kind: int
    label: str


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """One bar of parts."""

    name: str
    y: float
    length: float
    total: str
    parts: tuple[Part, ...]


class BarChart(msgspec.Struct, frozen=True, kw_only=True):
    """Bars on one scale; ``names`` are of the parts, by their ``kind``."""

    width: float
    height: float
    bar_height: float
    bars: tuple[Bar, ...]
    names: tuple[str, ...]


def step_chart(num_layers: Sequence[int], num_tokens: Sequence[int], *, most: int) -> StepChart:
    """Return the chart of a schedule.

    Args:
        num_layers: of each segment.
        num_tokens: visual tokens that enter each segment.
        most: visual tokens of the picture, before any pruning.
    """
    scale_x, scale_y = WIDTH / sum(num_layers), STEP_HEIGHT / most
    steps, first = [], 0
    for layers, tokens in zip(num_layers, num_tokens, strict=True):
        height = tokens * scale_y
        last = first + layers - 1
        steps.append(
            Step(
                x=round(first * scale_x, 2),
                y=round(STEP_HEIGHT - height, 2),
                width=round(layers * scale_x, 2),
                height=round(height, 2),
                num_tokens=tokens,
                layers=f"layer {first}" if layers == 1 else f"layers {first} to {last}",
            )
        )
        first += layers
    return StepChart(width=WIDTH, height=STEP_HEIGHT, steps=tuple(steps), most=most)


def bar_chart(bars: Mapping[str, Mapping[str, float]]) -> BarChart:
    """Return bars of parts in milliseconds, each part of all bars in the same order."""
    names = tuple(dict.fromkeys(name for each in bars.values() for name in each))
    longest = max(sum(each.values()) for each in bars.values())
    drawn = []
    for place, (name, each) in enumerate(bars.items()):
        total, x, drawn_parts = sum(each.values()), 0.0, []
        for part, measured_ms in each.items():
            ms = max(0.0, measured_ms)  # what is left of a sum may be a rounding below zero
            width = ms / longest * WIDTH
            drawn_parts.append(
                Part(
                    name=part,
                    x=round(x, 2),
                    width=round(width, 2),
                    kind=names.index(part),
                    label=f"{ms:.3g}" if ms >= LABELLED_SHARE * longest else "",
                )
            )
            x += width
        drawn.append(
            Bar(
                name=name,
                y=place * (BAR_HEIGHT + BAR_GAP) + BAR_GAP,
                length=round(x, 2),
                total=f"{total:.3g}",
                parts=tuple(drawn_parts),
            )
        )
    return BarChart(
        width=WIDTH,
        height=len(drawn) * (BAR_HEIGHT + BAR_GAP),
        bar_height=BAR_HEIGHT,
        bars=tuple(drawn),
        names=names,
    )
