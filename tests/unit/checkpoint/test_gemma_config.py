"""Configs of Gemma decoders, as published and as transformers 5 writes them."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from feather_edge.checkpoint import RopeScaling, TextConfig, text_config
from feather_edge.errors import CheckpointError, UnsupportedModelError

CLASSES = {
    "gemma": transformers.GemmaConfig,
    "gemma2": transformers.Gemma2Config,
    "gemma3_text": transformers.Gemma3TextConfig,
}

# What the text_config of these checkpoints names; everything else is a default.
PUBLISHED: dict[str, dict[str, Any]] = {
    "paligemma-3b-mix-224": {
        "model_type": "gemma",
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_attention_heads": 8,
        "num_hidden_layers": 18,
        "num_key_value_heads": 1,
        "vocab_size": 257216,
    },
    "paligemma2-28b-mix-224": {
        "model_type": "gemma2",
        "hidden_size": 4608,
        "intermediate_size": 36864,
        "num_attention_heads": 32,
        "num_hidden_layers": 46,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "query_pre_attn_scalar": 144,
        "vocab_size": 257216,
    },
    "gemma-3-4b-it": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "gemma-3-27b-it": {
        "model_type": "gemma3_text",
        "head_dim": 128,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "query_pre_attn_scalar": 168,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
    },
}


def read(**fields: Any) -> TextConfig:
    return text_config({"text_config": fields}, supported=tuple(CLASSES))


def reference_of(fields: dict[str, Any]) -> Any:
    given = {key: value for key, value in fields.items() if key != "model_type"}
    return CLASSES[fields["model_type"]](**given)


@pytest.mark.parametrize("form", ["published", "saved again"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_facts_are_those_of_transformers(name: str, form: str) -> None:
    reference = reference_of(PUBLISHED[name])
    config = read(**(reference.to_dict() if form == "saved again" else PUBLISHED[name]))

    for field in (
        "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads",
        "num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings",
    ):  # fmt: skip
        assert getattr(config, field) == getattr(reference, field), field
    assert config.num_layers == reference.num_hidden_layers
    assert config.max_positions == reference.max_position_embeddings
    assert config.has_unit_offset
    assert config.embedding_scale == reference.hidden_size**0.5
    scalar = getattr(reference, "query_pre_attn_scalar", reference.head_dim)
    assert config.score_scale == scalar**-0.5
    assert config.has_post_norms == config.model_type.startswith(("gemma2", "gemma3"))
    assert config.has_qk_norm == (config.model_type == "gemma3_text")
    assert config.attention_softcap == getattr(reference, "attn_logit_softcapping", None)
    assert config.logits_softcap == getattr(reference, "final_logit_softcapping", None)
    activation = getattr(reference, "hidden_activation", None) or reference.hidden_act
    assert config.hidden_act == activation


@pytest.mark.parametrize("form", ["published", "saved again"])
@pytest.mark.parametrize("name", [n for n in PUBLISHED if n != "paligemma-3b-mix-224"])
def test_local_layers_and_their_rotary(name: str, form: str) -> None:
    reference = reference_of(PUBLISHED[name])
    config = read(**(reference.to_dict() if form == "saved again" else PUBLISHED[name]))
    rope = reference.rope_parameters

    assert config.local is not None
    kinds = ["full_attention"] * config.num_layers
    for layer in config.local.layers:
        kinds[layer] = "sliding_attention"
    assert kinds == reference.layer_types
    assert config.local.window == reference.sliding_window
    if config.model_type == "gemma2":
        assert config.local.rope_theta is None
        assert config.rope_theta == rope["rope_theta"]
    else:
        assert config.local.rope_theta == rope["sliding_attention"]["rope_theta"]
        assert config.rope_theta == rope["full_attention"]["rope_theta"]
        assert config.rope_scaling == RopeScaling(type="linear", factor=8.0)


def test_the_first_releases_mean_the_tanh_approximation() -> None:
    assert read(model_type="gemma", hidden_act="gelu").hidden_act == "gelu_pytorch_tanh"
    assert read(model_type="gemma", hidden_act="silu").hidden_act == "silu"


def test_no_window_no_local_layers() -> None:
    assert read(model_type="gemma2", sliding_window=None).local is None
    assert read(model_type="gemma2", layer_types=["full_attention"] * 26).local is None


def test_an_untied_head_is_the_whole_models_word() -> None:
    raw = {"tie_word_embeddings": False, "text_config": {"model_type": "gemma"}}
    assert not text_config(raw, supported=("gemma",)).tie_word_embeddings


def test_refusals() -> None:
    rope = {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}
    with pytest.raises(UnsupportedModelError, match="'linear' in the local layers is not"):
        read(model_type="gemma3_text", rope_parameters=rope)
    with pytest.raises(CheckpointError, match="sliding_window is None; it must be an integer"):
        read(model_type="gemma3_text", sliding_window=None)
    with pytest.raises(CheckpointError, match="attn_logit_softcapping is 0; it must be a number"):
        read(model_type="gemma2", attn_logit_softcapping=0)
