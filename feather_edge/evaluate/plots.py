"""Accuracy against cost, as pictures; needs the extra ``viz``."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from feather_edge.errors import RequestError
from feather_edge.evaluate.comparison import PRE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from feather_edge.evaluate.summary import Evaluation

__all__ = ["pareto_front", "require_matplotlib", "write_plots"]

KINDS = {"localisation_acc": "localisation", "coarse_acc": "coarse"}
COSTS = {
    "flops": ("flops_ratio", "FLOPs kept (decoder prefill, unpruned = 1)"),
    "ttft": ("median_ttft_ms", "time to the first token, ms (median, this machine)"),
}
MARKERS = "osD^vP*X"


def require_matplotlib() -> None:
    """Fail early where plots could not be drawn in the end.

    Raises:
        RequestError: if matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise RequestError(
            "plots need matplotlib, which is not installed; run: pip install 'feather-edge[viz]'"
        )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which (cost, accuracy) no other point beats, by rising cost.

    Of points that cost the same, only the best is in front; of equals, the first.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    for index in order:
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def write_plots(evaluation: Evaluation, output: Path) -> list[Path]:
    """Write ``accuracy-flops.png`` and ``accuracy-ttft.png``; returns their paths."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    paths = []
    for name, (cost, label) in COSTS.items():
        figure = Figure(figsize=(12, 5), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        for axes, accuracy in zip(figure.subplots(1, 2, sharey=True), KINDS, strict=True):
            _draw(axes, evaluation, cost, accuracy)
            axes.set_xlabel(label)
        figure.axes[0].set_ylabel("accuracy, 95 % interval")
        handles, labels = figure.axes[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False)
        paths.append(output / f"accuracy-{name}.png")
        figure.savefig(paths[-1])
    return paths


def _draw(axes: Axes, evaluation: Evaluation, cost: str, accuracy: str) -> None:
    """Draw every method in a colour of its own, dashed where it prunes before the decoder."""
    from matplotlib import colormaps

    axes.set_title(KINDS[accuracy])
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    rows = [row for row in evaluation.rows if getattr(row, accuracy) is not None]
    points = [(getattr(row, cost), getattr(row, accuracy)) for row in rows]
    if not points:
        axes.text(0.5, 0.5, "not asked", ha="center", transform=axes.transAxes)
        return
    front = [points[index] for index in pareto_front(points)]
    axes.plot(
        *zip(*front, strict=True), color="0.8", linewidth=6, marker="o", markersize=13, zorder=0,
        label="Pareto front",
    )  # fmt: skip
    axes.axhline(points[0][1], color="0.5", linestyle=":", linewidth=1)
    methods = list(dict.fromkeys(row.method for row in rows))
    colours = colormaps["tab20"](range(20))
    for number, method in enumerate(methods):
        chosen = sorted(
            (getattr(row, cost), getattr(row, accuracy), *getattr(row.ci95, accuracy))
            for row in rows
            if row.method == method
        )
        x, y, low, high = zip(*chosen, strict=True)
        errors = [
            [max(0.0, each - bound) for each, bound in zip(y, low, strict=True)],
            [max(0.0, bound - each) for each, bound in zip(y, high, strict=True)],
        ]
        colour = "black" if method == "none" else colours[(number - 1) % len(colours)]
        axes.errorbar(
            x, y, yerr=errors, label=method, marker=MARKERS[number % len(MARKERS)],
            linestyle="--" if method.startswith(PRE) else "-",
            capsize=2, linewidth=1.2, markersize=5, elinewidth=0.8, color=colour,
        )  # fmt: skip
