"""Vision encoders of Qwen-VL: values and defaults are those of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from feather_edge.checkpoint.patch_vision_config import patch_vision_config
from feather_edge.errors import CheckpointError, UnsupportedModelError

CLASSES = {
    "qwen2_vl_vision": transformers.Qwen2VLConfig,
    "qwen2_5_vl_vision": transformers.Qwen2_5_VLConfig,
    "qwen3_vl_vision": transformers.Qwen3VLConfig,
}


@pytest.mark.parametrize(
    "fields",
    [{}, {"depth": 30, "num_heads": 8, "patch_size": 16, "hidden_act": "gelu"}],
    ids=str,
)
@pytest.mark.parametrize("model_type", CLASSES)
def test_values_and_defaults_are_those_of_transformers(
    model_type: str, fields: dict[str, Any]
) -> None:
    raw = {"vision_config": fields} if fields else {}
    reference = CLASSES[model_type](**raw).vision_config

    config = patch_vision_config(raw, model_type)

    assert config.num_layers == reference.depth
    assert config.num_attention_heads == reference.num_heads
    assert config.patch_size == reference.patch_size
    assert config.merge_size == reference.spatial_merge_size
    assert config.temporal_patch_size == reference.temporal_patch_size
    assert config.hidden_act == reference.hidden_act
    assert config.patch_width == 3 * 2 * reference.patch_size**2
    assert config.rope_theta == reference.rope_parameters["rope_theta"]
    width = getattr(reference, "embed_dim", reference.hidden_size)
    assert config.hidden_size == width
    assert config.head_dim == width // reference.num_heads
    if model_type == "qwen2_vl_vision":
        assert config.out_size == reference.hidden_size
        assert config.intermediate_size == width * reference.mlp_ratio
        assert config.full_attention_layers == frozenset(range(reference.depth))
    else:
        assert config.out_size == reference.out_hidden_size
        assert config.intermediate_size == reference.intermediate_size
    if model_type == "qwen2_5_vl_vision":
        assert config.full_attention_layers == frozenset(reference.fullatt_block_indexes)
        assert config.window_size == reference.window_size // 2 // reference.patch_size
    if model_type == "qwen3_vl_vision":
        assert config.num_positions == reference.num_position_embeddings
        assert config.deepstack_layers == tuple(reference.deepstack_visual_indexes)


def test_older_files_name_the_whole_models_type() -> None:
    raw = {"vision_config": {"model_type": "qwen2_5_vl"}}
    assert patch_vision_config(raw, "qwen2_5_vl_vision").num_layers == 32
    with pytest.raises(UnsupportedModelError, match="has model_type 'qwen2_vl', which is not"):
        patch_vision_config({"vision_config": {"model_type": "qwen2_vl"}}, "qwen2_5_vl_vision")


@pytest.mark.parametrize("layers", [3, [1, 1], [27], ["1"], [-1]], ids=str)
def test_layers_that_do_not_exist(layers: object) -> None:
    raw = {"vision_config": {"deepstack_visual_indexes": layers}}
    with pytest.raises(CheckpointError) as error:
        patch_vision_config(raw, "qwen3_vl_vision")
    assert str(error.value) == (
        f"vision_config: deepstack_visual_indexes is {layers!r}; it must be a list of different "
        f"layers from 0 to 26"
    )
