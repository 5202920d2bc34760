from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

from feather_edge.manifest import Rotary
from feather_edge.pruning import VisualSpan
from feather_edge.runtime.rotary import prompt_coordinates, rotary_tables

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


def test_coordinates_of_a_prompt_with_two_pictures() -> None:
    rotary = Rotary(head_dim=16, theta=1e4, sections=(2, 3, 3))
    spans = [VisualSpan(start=2, height=2, width=3), VisualSpan(start=9, height=1, width=1)]

    coordinates = prompt_coordinates(rotary, 12, spans)

    assert coordinates.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7, 8],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7, 8],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8],
    ]
    plain = prompt_coordinates(Rotary(head_dim=16, theta=1e4), 12, spans)
    assert plain.tolist() == [list(range(12))]


@pytest.mark.parametrize(
    ("sections", "is_interleaved"),
    [((16, 24, 24), False), ((24, 20, 20), True), ((62, 1, 1), True), ((2, 31, 31), False)],
)
def test_mrope_tables_are_those_of_transformers(
    sections: tuple[int, int, int], is_interleaved: bool
) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(sections)}
    config, reference = (
        (Qwen3VLTextConfig(head_dim=128, rope_parameters=rope), Qwen3VLTextRotaryEmbedding)
        if is_interleaved
        else (
            Qwen2VLTextConfig(hidden_size=256, num_attention_heads=2, rope_parameters=rope),
            Qwen2VLRotaryEmbedding,
        )
    )
    coordinates = np.random.default_rng(0).integers(0, 40, (3, 9))
    rotary = Rotary(head_dim=128, theta=1e6, sections=sections, is_interleaved=is_interleaved)

    tables = rotary_tables(rotary, coordinates)

    assert all(table.flags.c_contiguous for table in tables)
    expected = reference(config)(torch.zeros(1), torch.tensor(coordinates)[:, None])
    for ours, theirs in zip(tables, expected, strict=True):
        np.testing.assert_allclose(ours, theirs[0, :, :64].numpy(), atol=5e-6)
    text, same = (
        rotary_tables(rotary, each) for each in (np.arange(9), np.tile(range(9), (3, 1)))
    )
    np.testing.assert_array_equal(text, same)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head_dim": 7}, "head_dim is 7; it must be even, 2 to 4096"),
        ({"head_dim": -8}, "head_dim is -8; it must be even, 2 to 4096"),
        ({"head_dim": 16, "sections": (2, 3, 4)}, "sections are (2, 3, 4); they must sum to 8"),
        ({"head_dim": 16, "sections": (9, -1, 0)}, "sections are (9, -1, 0); they must sum to 8"),
    ],
)
def test_a_rotary_embedding_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="it must be even|they must sum") as error:
        Rotary(theta=1e4, **fields)
    assert str(error.value) == message
