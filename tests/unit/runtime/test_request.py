"""One request's way into the decoder: planes follow what is left of the visual tokens."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np

from feather_edge.pruning import Layout, Pruning, VisualSpan
from feather_edge.runtime.request import Run

LAYOUT = Layout.full(18, [VisualSpan(start=1, height=4, width=4)])


def entering_planes(pre_criterion: str, planes: np.ndarray) -> np.ndarray:
    """The planes [planes, K, D] that reach the chain after pruning before the decoder."""
    seen = []

    def prefill(
        _embeds: object, _layout: object, _pruning: object, *, planes: np.ndarray
    ) -> object:
        seen.append(planes)
        return np.zeros(3, np.float32), []

    watch = SimpleNamespace(stage=lambda _name: nullcontext())
    pruning = Pruning(criterion="none", pre_criterion=pre_criterion, pre_keep_ratio=0.25)
    run = Run(
        chain=SimpleNamespace(watch=watch, prefill=prefill),
        layout=LAYOUT,
        pruning=pruning,
        reason=None,
    )
    run.prefill(np.random.default_rng(0).standard_normal((18, 2), np.float32), planes)
    return seen[0]


def test_pooled_tokens_add_the_mean_of_their_planes() -> None:
    plane = np.zeros((18, 2), np.float32)
    plane[1:17, 0] = np.arange(16)

    found = entering_planes("pooling", np.stack([plane, 2 * plane]))

    means = np.arange(16).reshape(2, 2, 2, 2).mean(axis=(1, 3)).ravel()
    assert found.shape == (2, 6, 2)
    np.testing.assert_allclose(found[0, :, 0], [0, *means, 0])
    np.testing.assert_allclose(found[1], 2 * found[0])


def test_chosen_tokens_keep_their_own_planes_and_most_models_have_none() -> None:
    plane = np.arange(36, dtype=np.float32).reshape(1, 18, 2)

    (found,) = entering_planes("uniform", plane)

    assert len(found) == 6
    assert {tuple(row) for row in found} <= {tuple(row) for row in plane[0]}
    for pre_criterion in ("uniform", "pooling"):
        assert entering_planes(pre_criterion, np.zeros((0, 18, 2))).shape == (0, 6, 2)
