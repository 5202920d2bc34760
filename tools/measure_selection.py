"""Measure how long selection before the decoder takes, on features like those of a SigLIP tower.

    OMP_NUM_THREADS=1 python tools/measure_selection.py --tokens 729 --width 2048 --keep-ratio 0.5

Prints the median of each criterion, and for cdpruner its parts: the product of all features, and
the greedy loop beside its former version, which gathered a column of the factor at every step and
masked all picks anew. Fails if the two pick differently.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from typing import TYPE_CHECKING

import numpy as np

from feather_edge.pruning.pre_criteria import PRE_CRITERIA
from feather_edge.pruning.pre_criteria.cdpruner import NO_VOLUME, greedy_map
from feather_edge.pruning.pre_criteria.tokens import ImageTokens, unit_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

NUM_TOPICS = 60
"""Features are mixtures of so many directions, with noise: neighbours are alike."""


def made_up_tokens(num_tokens: int, width: int) -> ImageTokens:
    """Return tokens of one image, and a prompt of 40 text tokens."""
    rng = np.random.default_rng(0)
    topics = rng.normal(size=(NUM_TOPICS, width))
    mixed = rng.normal(size=(num_tokens, NUM_TOPICS)) @ topics
    features = mixed + 2 * rng.normal(size=(num_tokens, width))
    return ImageTokens(
        features=features.astype(np.float32),
        raster=np.arange(num_tokens),
        height=1,
        width=num_tokens,
        text=rng.normal(size=(40, width)).astype(np.float32),
        seed=(0, 0),
    )


def former_greedy_map(kernel: NDArray[np.float64], num_kept: int) -> list[int]:
    """Return the picks of the loop as it was."""
    volume = kernel.diagonal().copy()
    factor = np.zeros((num_kept, len(kernel)))
    order: list[int] = []
    while len(order) < num_kept:
        best = int(volume.argmax())
        if volume[best] <= NO_VOLUME:
            break
        step = len(order)
        factor[step] = kernel[best] - factor[:step, best] @ factor[:step]
        factor[step] /= np.sqrt(volume[best])
        volume -= factor[step] ** 2
        volume[order] = volume[best] = -np.inf
        order.append(best)
    return order


def main() -> None:
    """Measure everything in turn, round after round, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=729)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--keep-ratio", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    tokens = made_up_tokens(options.tokens, options.width)
    num_kept = round(options.keep_ratio * options.tokens)
    unit = unit_rows(tokens.features).astype(np.float64)
    kernel = unit @ unit.T
    if greedy_map(kernel, num_kept) != former_greedy_map(kernel, num_kept):
        raise SystemExit("the two loops pick differently")
    measured: dict[str, Callable[[], object]] = {
        name: functools.partial(rank, tokens, num_kept) for name, rank in PRE_CRITERIA.items()
    }
    measured["cdpruner: product"] = lambda: unit @ unit.T
    measured["cdpruner: loop"] = lambda: greedy_map(kernel, num_kept)
    measured["cdpruner: former loop"] = lambda: former_greedy_map(kernel, num_kept)
    times_ms: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(options.rounds):
        for name, call in measured.items():
            start = time.perf_counter()
            call()
            times_ms[name].append((time.perf_counter() - start) * 1e3)
    for name, values in times_ms.items():
        print(f"{name:<22} {statistics.median(values):8.2f} ms")
    after, before = (times_ms[f"cdpruner: {name}"] for name in ("loop", "former loop"))
    print(f"loop by former loop: {statistics.median(after) / statistics.median(before):.2f}")


if __name__ == "__main__":
    main()
