"""Where the time to the first token goes, as a picture; needs the extra ``viz``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from feather_edge.errors import RequestError
from feather_edge.evaluate.plots import require_matplotlib

if TYPE_CHECKING:
    from pathlib import Path

    from feather_edge.bench.report import Report
    from feather_edge.bench.summary import Summary

__all__ = ["parts", "require_plot", "write_plot"]

SUFFIXES = (".png", ".svg", ".pdf")

MIN_LABEL_SHARE = 0.05
SEGMENT_COLOURS = ("#1f77b4", "#5fa2d0", "#9fcbe6", "#c9e1f0")
COLOURS = {"preprocess": "#8c8c8c", "vision": "#e69f00", "prune": "#d55e00", "other": "#d9d9d9"}


def require_plot(output: Path) -> None:
    """Fail early where the plot could not be written in the end.

    Raises:
        RequestError: if matplotlib is missing, or the file cannot be made.
    """
    require_matplotlib()
    if output.suffix not in SUFFIXES:
        raise RequestError(f"plot {output} must be a file named {', '.join(SUFFIXES)}")
    if not output.parent.is_dir():
        raise RequestError(f"plot {output} cannot be written: {output.parent} is no folder")


def write_plot(report: Report, output: Path) -> None:
    """Draw one stacked bar per pruning, its roof as a line across it.

    Args:
        report: a benchmark.
        output: a file whose suffix says the format, such as .png or .svg.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    summaries = {"unpruned": report.unpruned, "pruned": report.pruned}
    floors = {"unpruned": report.floor.unpruned, "pruned": report.floor.pruned}
    bars = {name: parts(each) for name, each in summaries.items() if each is not None}
    longest = max(sum(each.values()) for each in bars.values())
    figure = Figure(figsize=(10, 1.6 + 0.9 * len(bars)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, (name, stages) in enumerate(bars.items()):
        left = 0.0
        for stage, ms in stages.items():
            axes.barh(place, ms, left=left, height=0.6, color=_colour(stage), edgecolor="white",
                      linewidth=0.5, label=stage if place == 0 else None)  # fmt: skip
            if ms >= MIN_LABEL_SHARE * longest:
                axes.text(left + ms / 2, place, _shown(ms), ha="center", va="center", fontsize=8)
            left += ms
        axes.text(left, place, f"  {_shown(left)} ms", va="center", fontweight="bold")
        floor = floors[name]
        if floor is not None and floor.ttft_roof_ms is not None:
            roof_ms = [floor.ttft_roof_ms] * 2
            axes.plot(roof_ms, [place - 0.3, place + 0.3], color="black", linestyle=":")
            axes.plot(roof_ms, [place - 0.36, place + 0.36], "k", linestyle="", marker="|",
                      label="roof" if place == 0 else None)  # fmt: skip
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.15)
    axes.set_xlabel("time to the first token of the median request, ms")
    axes.spines[["top", "right"]].set_visible(False)
    here = report.environment
    axes.set_title(f"{here.source}, {here.recipe.precision}: {here.backend} on {here.machine}")
    figure.legend(loc="outside lower center", ncols=8, frameon=False, fontsize=8)
    figure.savefig(output)


def parts(summary: Summary) -> dict[str, float]:
    """Return what the time to the first token is made of, in the order in which it passes.

    Of one request, the one with the median time: medians of parts do not add up.
    """
    by_time = sorted(summary.timings, key=lambda timing: timing.ttft_ms)
    median = by_time[(len(by_time) - 1) // 2]
    found = {"preprocess": median.preprocess_ms, "vision": median.vision_ms}
    found |= {f"decoder_{index}": ms for index, ms in enumerate(median.segment_ms)}
    found["prune"] = median.prune_ms
    found["other"] = median.ttft_ms - sum(found.values())
    return found


def _colour(stage: str) -> str:
    if stage in COLOURS:
        return COLOURS[stage]
    return SEGMENT_COLOURS[int(stage.rpartition("_")[2]) % len(SEGMENT_COLOURS)]


def _shown(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"
