from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from feather_edge.errors import BackendError, RequestError
from feather_edge.runtime.sampling import Sampler, Sampling


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": -0.1}, "temperature -0.1 is out of range; it must be 0 (always the best"),
        ({"temperature": float("nan")}, "temperature nan is out of range"),
        ({"temperature": float("inf")}, "temperature inf is out of range"),
        ({"top_p": 0.0}, "top-p 0.0 is out of range; it must be in (0, 1]"),
        ({"top_p": 1.01}, "top-p 1.01 is out of range; it must be in (0, 1]"),
        ({"seed": -1}, "seed -1 is out of range; it must be 0 or more"),
    ],
)
def test_options_out_of_range(options, expected):
    with pytest.raises(RequestError) as error:
        Sampling(**options)
    assert expected in str(error.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
def test_greedy_takes_the_best_token_and_the_lowest_id_of_a_tie(dtype):
    sampler = Sampler(Sampling())
    assert sampler(np.array([0, 3, 1, 3], dtype)) == 1
    assert isinstance(sampler(np.array([0, 3], dtype)), int)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_logits_that_are_not_finite_are_refused(bad, temperature):
    logits = np.array([0, bad, 1, bad], np.float32)
    with pytest.raises(BackendError) as error:
        Sampler(Sampling(temperature=temperature))(logits)
    assert str(error.value) == (
        f"logits are not finite: 2 of 4 are inf or nan, the first is token 1 with {bad}; half "
        "precision may have overflowed: export with --precision fp32, or check the graphs with "
        "feather-edge verify"
    )


def test_the_seed_decides():
    logits = np.random.default_rng(0).normal(size=100).astype(np.float32)

    def draw(seed):
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler(logits) for _ in range(20)]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert len(set(draw(3))) > 5


@pytest.mark.parametrize("temperature", [1e-300, 1e-4])
def test_a_tiny_temperature_is_greedy(temperature):
    logits = np.array([1.0, 300.0, -5.0], np.float32)
    assert Sampler(Sampling(temperature=temperature))(logits) == 1


def test_a_tiny_nucleus_is_greedy():
    sampler = Sampler(Sampling(temperature=10.0, top_p=1e-9))
    assert {sampler(np.array([1.0, 1.1, 1.0])) for _ in range(20)} == {1}


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 1.0])
def test_probabilities_are_those_of_transformers(temperature, top_p):
    logits = np.random.default_rng(1).normal(scale=3, size=50).astype(np.float32)
    scores = torch.from_numpy(logits.astype(np.float64))[None]
    scores = TemperatureLogitsWarper(temperature)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    expected = scores.softmax(-1)[0].numpy()
    sampler = Sampler(Sampling(temperature=temperature, top_p=top_p))
    actual = sampler._probabilities(logits.astype(np.float64))
    np.testing.assert_allclose(actual, expected, atol=1e-12)
