from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from feather_edge.manifest import Rotary
from feather_edge.runtime.rotary import rotary_tables

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({"rope_type": "default"}, {}),
    "linear": ({"rope_type": "linear", "factor": 4.0}, {"scaling": "linear", "factor": 4.0}),
    "llama3": (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            **LLAMA3,
        },
        {"scaling": "llama3", "factor": 8.0, "original_max_positions": 8192, **LLAMA3},
    ),
    "llama3-short": (
        {"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 64, **LLAMA3},
        {"scaling": "llama3", "factor": 32.0, "original_max_positions": 64, **LLAMA3},
    ),
}


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("head_dim", [8, 64, 128])
@pytest.mark.parametrize("case", CASES)
def test_tables_are_those_of_transformers(case: str, head_dim: int, theta: float) -> None:
    theirs, ours = CASES[case]
    config = LlamaConfig(
        head_dim=head_dim,
        max_position_embeddings=16384,
        rope_parameters={**theirs, "rope_theta": theta},
    )
    positions = np.array([0, 1, 2, 7, 300, 301, 1023, 4000])  # gaps, as pruning leaves them

    cos, sin = rotary_tables(Rotary(head_dim=head_dim, theta=theta, **ours), positions)

    rotary = LlamaRotaryEmbedding(config)
    expected = rotary(torch.zeros(1), position_ids=torch.tensor(positions)[None])
    for table, doubled in zip((cos, sin), expected, strict=True):
        assert table.dtype == np.float32
        assert table.shape == (len(positions), head_dim // 2)
        half = doubled[0, :, : head_dim // 2].numpy()
        # An angle of 4000 in float32 is exact to 2e-4.
        np.testing.assert_allclose(table, half, atol=5e-4)
        near = positions <= 7
        np.testing.assert_allclose(table[near], half[near], atol=2e-6)


def test_position_zero_is_the_identity() -> None:
    cos, sin = rotary_tables(Rotary(head_dim=8, theta=10000.0), np.array([0]))

    assert (cos == 1).all()
    assert (sin == 0).all()


def test_llama3_keeps_short_wavelengths_and_divides_long_ones() -> None:
    plain, scaled = (
        rotary_tables(Rotary(head_dim=64, theta=500_000.0, **options), np.array([1]))
        for options in ({}, CASES["llama3"][1])
    )
    angles = [np.arctan2(sin, cos)[0] for cos, sin in (plain, scaled)]

    assert angles[1][0] == pytest.approx(angles[0][0])
    assert angles[1][-1] == pytest.approx(angles[0][-1] / 8, rel=1e-5)
