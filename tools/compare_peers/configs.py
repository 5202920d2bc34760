"""The JSON documents of a checkpoint, laid out as published ones are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compare_peers.models import Decoder, Model

ROPE_THETA = 1e6


def _decoder_config(sizes: Decoder, ids: dict[str, int]) -> dict[str, Any]:
    return {
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "hidden_act": "silu",
        "hidden_size": sizes.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": sizes.intermediate_size,
        "max_position_embeddings": 32768,
        "max_window_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "num_hidden_layers": sizes.num_layers,
        "num_key_value_heads": sizes.num_kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": ROPE_THETA,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": sizes.vocab_size,
    }


def _generation_config(ids: dict[str, int]) -> dict[str, Any]:
    return {
        "do_sample": False,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }


def qwen_configs(model: Model, ids: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Return the documents of a Qwen2.5-VL checkpoint, by file."""
    half = model.decoder.hidden_size // model.decoder.num_heads // 2
    time = half // 4
    depth = model.vision["depth"]
    vision = {
        **model.vision,
        "model_type": "qwen2_5_vl",
        "out_hidden_size": model.decoder.hidden_size,
        "hidden_act": "silu",
        "in_chans": 3,
        "in_channels": 3,
        "patch_size": 14,
        "spatial_patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
        "fullatt_block_indexes": list(range(3, depth, 4)),
    }
    rows = (half - time) // 2
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **_decoder_config(model.decoder, ids),
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|image_pad|>"],
        "rope_scaling": {"type": "mrope", "mrope_section": [time, rows, half - time - rows]},
        "torch_dtype": "float32",
        "vision_config": vision,
    }
    pictures = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    return {
        "config.json": config,
        "generation_config.json": _generation_config(ids),
        "preprocessor_config.json": pictures,
    }


def llava_configs(model: Model, ids: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Return the documents of a LLaVA checkpoint, by file."""
    side, patch = model.vision["image_size"], model.vision["patch_size"]
    num_tokens = (side // patch) ** 2
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_seq_length": num_tokens,
        "image_token_index": ids["<image>"],
        "ignore_index": -100,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "text_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            **_decoder_config(model.decoder, ids),
        },
        "vision_config": {
            **model.vision,
            "model_type": "siglip_vision_model",
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "num_channels": 3,
            "vision_use_head": False,
        },
    }
    pictures = {
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": side, "width": side},
    }
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "num_additional_image_tokens": 0,
        "patch_size": patch,
        "vision_feature_select_strategy": "full",
    }
    return {
        "config.json": config,
        "generation_config.json": _generation_config(ids),
        "preprocessor_config.json": pictures,
        "processor_config.json": processor,
    }
