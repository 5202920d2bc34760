from __future__ import annotations

import pytest
import transformers

from feather_edge.checkpoint import RopeScaling, text_config, vision_config
from feather_edge.errors import CheckpointError, UnsupportedModelError

TEXT_CLASSES = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
}
MROPE_CLASSES = {
    "qwen2_vl_text": (transformers.Qwen2VLTextConfig, (16, 24, 24)),
    "qwen2_5_vl_text": (transformers.Qwen2_5_VLTextConfig, (16, 24, 24)),
    "qwen3_vl_text": (transformers.Qwen3VLTextConfig, (24, 20, 20)),
}
VISION_CLASSES = {
    "clip_vision_model": transformers.CLIPVisionConfig,
    "siglip_vision_model": transformers.SiglipVisionConfig,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}


def text(**fields):
    return text_config({"text_config": fields})


def vision(**fields):
    return vision_config({"vision_config": fields})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_attention_heads": 16, "num_key_value_heads": 4},
        {"num_attention_heads": 64, "hidden_size": 2048, "num_key_value_heads": 64},
        {"rms_norm_eps": 1e-5, "vocab_size": 32064, "max_position_embeddings": 4096},
        {"rope_theta": 500000.0},
        {"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}},
    ],
)
@pytest.mark.parametrize("model_type", TEXT_CLASSES)
def test_text_values_and_defaults_are_those_of_transformers(model_type, fields):
    reference = TEXT_CLASSES[model_type](**fields)
    config = text(model_type=model_type, **fields)
    assert config.num_layers == reference.num_hidden_layers
    for name in (
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "rms_norm_eps",
        "hidden_act",
        "tie_word_embeddings",
    ):
        assert getattr(config, name) == getattr(reference, name), name
    head_dim = getattr(reference, "head_dim", None)
    assert config.head_dim == (head_dim or reference.hidden_size // reference.num_attention_heads)
    assert config.rope_theta == reference.rope_parameters["rope_theta"]
    assert config.rope_scaling is None
    window = getattr(reference, "sliding_window", None) or 2**31
    assert config.max_positions == min(reference.max_position_embeddings, window)


@pytest.mark.parametrize("sections", [None, [10, 27, 27]])
@pytest.mark.parametrize("model_type", MROPE_CLASSES)
def test_a_decoder_with_sections_is_that_of_transformers(model_type, sections):
    kind, default_sections = MROPE_CLASSES[model_type]
    scaling = {"rope_scaling": {"type": "mrope", "mrope_section": sections}} if sections else {}
    fields = {"num_hidden_layers": 3, **scaling, **({"rope_theta": 9.0} if sections else {})}
    reference = kind(**fields)

    part = {"text_config": {"model_type": model_type, **fields}}
    config = text_config(part, supported=(model_type,))

    for name in (
        "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads",
        "num_key_value_heads", "rms_norm_eps", "hidden_act",
    ):  # fmt: skip
        assert getattr(config, name) == getattr(reference, name), name
    assert config.num_layers == 3
    assert config.head_dim == 128
    assert config.max_positions == reference.max_position_embeddings
    assert config.rope_theta == reference.rope_parameters["rope_theta"]
    assert config.rope_scaling is None
    assert config.mrope.sections == tuple(sections or default_sections)
    assert config.mrope.is_interleaved == (model_type == "qwen3_vl_text")
    assert config.attention_bias == model_type.startswith("qwen2")
    assert config.has_qk_norm == model_type.startswith("qwen3")
    assert not config.output_bias


@pytest.mark.parametrize("model_type", VISION_CLASSES)
@pytest.mark.parametrize("fields", [{}, {"image_size": 336, "patch_size": 14, "hidden_size": 96}])
def test_vision_values_and_defaults_are_those_of_transformers(model_type, fields):
    reference = VISION_CLASSES[model_type](**fields)
    config = vision(model_type=model_type, **fields)
    assert config.num_layers == reference.num_hidden_layers
    for name in (
        "model_type",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "image_size",
        "patch_size",
        "layer_norm_eps",
        "hidden_act",
        "num_channels",
    ):
        assert getattr(config, name) == getattr(reference, name), name


@pytest.mark.parametrize("raw", [{}, {"vision_config": None, "text_config": None}])
def test_a_llava_config_without_parts_means_what_transformers_means(raw):
    reference = transformers.LlavaConfig()
    config = vision_config(raw)
    assert config.hidden_size == reference.vision_config.hidden_size == 1024
    assert config.image_size == reference.vision_config.image_size == 336
    assert config.patch_size == reference.vision_config.patch_size == 14
    assert config.num_layers == reference.vision_config.num_hidden_layers
    assert config.intermediate_size == reference.vision_config.intermediate_size
    assert config.num_attention_heads == reference.vision_config.num_attention_heads
    assert text_config(raw).model_type == reference.text_config.model_type == "llama"


def test_as_many_key_value_heads_as_heads_where_none_are_named():
    fields = {"num_attention_heads": 64, "num_key_value_heads": None, "hidden_size": 2048}
    assert transformers.LlamaConfig(**fields).num_key_value_heads == 64
    assert text(**fields).num_key_value_heads == 64
    assert text(model_type="mistral", **fields).num_key_value_heads == 64


def test_llava_1_5_as_published():
    """What config.json of llava-1.5-7b-hf says, and all it says, about its decoder."""
    config = text_config(
        {
            "model_type": "llava",
            "text_config": {
                "_name_or_path": "lmsys/vicuna-7b-v1.5",
                "architectures": ["LlamaForCausalLM"],
                "max_position_embeddings": 4096,
                "model_type": "llama",
                "rms_norm_eps": 1e-05,
                "torch_dtype": "float16",
                "vocab_size": 32064,
            },
            "tie_word_embeddings": False,
        }
    )
    assert (config.num_layers, config.hidden_size, config.head_dim) == (32, 4096, 128)
    assert (config.vocab_size, config.rms_norm_eps, config.max_positions) == (32064, 1e-5, 4096)
    assert (config.num_key_value_heads, config.rope_theta) == (32, 10000.0)


@pytest.mark.parametrize(
    ("model_type", "biases"),
    [
        ("llama", (True, True, True)),
        ("mistral", (False, False, False)),
        ("qwen2", (True, False, False)),
    ],
)
def test_biases_are_those_that_the_model_class_has(model_type, biases):
    config = text(model_type=model_type, attention_bias=True, mlp_bias=True)
    assert (config.attention_bias, config.output_bias, config.mlp_bias) == biases
    config = text(model_type=model_type)
    assert config.attention_bias == (model_type == "qwen2")
    assert not config.output_bias
    assert not config.mlp_bias


@pytest.mark.parametrize(
    ("raw", "is_tied"),
    [
        ({}, False),
        ({"tie_word_embeddings": True}, True),
        ({"text_config": {"tie_word_embeddings": True}}, True),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, True),
    ],
)
def test_tied_embeddings_are_read_from_either_level(raw, is_tied):
    assert text_config(raw).tie_word_embeddings is is_tied
    part = raw.get("text_config", {})
    others = {key: value for key, value in raw.items() if key != "text_config"}
    reference = transformers.LlavaConfig(text_config=transformers.LlamaConfig(**part), **others)
    assert reference.tie_word_embeddings is is_tied


@pytest.mark.parametrize(
    ("fields", "max_positions"),
    [
        ({"model_type": "mistral", "sliding_window": 1024}, 1024),
        ({"model_type": "mistral", "sliding_window": None}, 131072),
        ({"model_type": "mistral", "max_position_embeddings": 512}, 512),
        ({"model_type": "llama", "sliding_window": 16}, 2048),
        ({"model_type": "qwen2", "sliding_window": 16}, 32768),
        ({"model_type": "qwen2", "sliding_window": 16, "use_sliding_window": True}, 16),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 16,
                "use_sliding_window": True,
                "max_window_layers": 32,
            },
            32768,
        ),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 16,
                "use_sliding_window": True,
                "layer_types": ["full_attention"] * 32,
            },
            32768,
        ),
    ],
)
def test_an_active_sliding_window_bounds_the_positions(fields, max_positions):
    assert text(**fields).max_positions == max_positions


@pytest.mark.parametrize("kind", ["type", "rope_type"])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_rope_scaling_in_both_layouts(key, kind):
    linear = text(rope_theta=5e5, **{key: {kind: "linear", "factor": 4}})
    assert linear.rope_scaling == RopeScaling(type="linear", factor=4.0)
    assert linear.rope_theta == 5e5
    llama3 = text(**{key: {kind: "llama3", **LLAMA3}})
    assert llama3.rope_scaling == RopeScaling(
        type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_positions=1024,
    )


def test_rope_parameters_hold_their_own_theta():
    config = text(rope_theta=1.0, rope_parameters={"rope_theta": 2.0, "rope_type": "default"})
    assert config.rope_theta == 2.0


def test_llama3_scaling_counts_from_the_models_own_positions_by_default():
    scaling = {key: value for key, value in LLAMA3.items() if "original" not in key}
    config = text(rope_scaling={"type": "llama3", **scaling}, max_position_embeddings=4096)
    assert config.rope_scaling.original_max_positions == 4096


@pytest.mark.parametrize(
    "scaling",
    [None, {}, {"type": "default"}, {"rope_type": None}, {"rope_type": "dynamic", "factor": 2.0}],
)
def test_no_rope_scaling(scaling):
    assert text(rope_scaling=scaling).rope_scaling is None


@pytest.mark.parametrize("kind", ["yarn", "longrope", "mrope"])
def test_other_rope_scaling_is_refused_by_name(kind):
    with pytest.raises(UnsupportedModelError) as error:
        text(rope_scaling={"type": kind, "factor": 2.0})
    assert str(error.value) == (
        f"text_config: rope scaling of type {kind!r} is not supported; supported are default, "
        "dynamic, linear, llama3"
    )


@pytest.mark.parametrize(
    "fields",
    [{"partial_rotary_factor": 0.5}, {"rope_parameters": {"partial_rotary_factor": 0.5}}],
)
def test_partial_rotary_is_refused(fields):
    with pytest.raises(
        UnsupportedModelError, match=r"partial_rotary_factor 0\.5 is not supported"
    ):
        text(**fields)


def test_unsupported_model_types_list_the_supported_ones():
    with pytest.raises(UnsupportedModelError) as error:
        text(model_type="gemma")
    assert str(error.value) == (
        "text_config has model_type 'gemma', which is not supported; supported are llama, "
        "mistral, qwen2, qwen3"
    )
    with pytest.raises(UnsupportedModelError) as error:
        vision(model_type="pixtral")
    assert str(error.value) == (
        "vision_config has model_type 'pixtral', which is not supported; supported are "
        "clip_vision_model, siglip_vision_model"
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"hidden_size": "big"}, "hidden_size is 'big'; it must be an integer of at least 1"),
        ({"vocab_size": 0}, "vocab_size is 0; it must be an integer of at least 1"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1; it must be a number above 0"),
        ({"rope_theta": "x"}, "rope_theta is 'x'; it must be a number above 0"),
        ({"rope_theta": float("nan")}, "rope_theta is nan; it must be a number above 0"),
        ({"hidden_act": 3}, "hidden_act is 3; it must be a name"),
        ({"head_dim": 5}, "head_dim 5 is odd; rotary embeddings turn pairs"),
        ({"hidden_size": 100}, "hidden_size 100 must be a multiple of num_attention_heads 32"),
        (
            {"num_key_value_heads": 5},
            "num_attention_heads 32 must be a multiple of num_key_value_heads 5",
        ),
        ({"rope_scaling": 3}, "rope parameters are 3; they must be an object"),
        (
            {"rope_scaling": {"type": "linear"}},
            "linear rope scaling: factor is None; it must be a number above 0",
        ),
    ],
)
def test_senseless_text_values(fields, expected):
    with pytest.raises(CheckpointError) as error:
        text(**fields)
    assert expected in str(error.value)
    assert str(error.value).startswith("text_config")


def test_a_head_dim_of_its_own_frees_the_hidden_size():
    assert text(hidden_size=100, head_dim=64).head_dim == 64


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"patch_size": 500}, "patch_size 500 must be at most image_size 224"),
        ({"hidden_size": 100, "num_attention_heads": 3}, "100 must be a multiple of num_attenti"),
        ({"image_size": [224]}, "image_size is [224]; it must be an integer of at least 1"),
    ],
)
def test_senseless_vision_values(fields, expected):
    with pytest.raises(CheckpointError) as error:
        vision(**fields)
    assert expected in str(error.value)


def test_square_images_may_be_written_as_a_pair():
    assert vision(image_size=[336, 336]).image_size == 336
    with pytest.raises(UnsupportedModelError, match=r"image_size \[336, 224\] is not square"):
        vision(image_size=[336, 224])


def test_a_part_that_is_no_object():
    with pytest.raises(
        CheckpointError, match=r"config\.json: text_config is 3; it must be an obj"
    ):
        text_config({"text_config": 3})
