"""The model that is trained: configuration, initialisation, and the folder it is saved as."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from vocabulary import (
    BOS,
    EOS,
    IMAGE,
    NUM_VISUAL_TOKENS,
    PAD,
    TOKEN_IDS,
    TOKENS,
    build_processor,
    save_processor,
)

from feather_edge.evaluate.scenes import IMAGE_SIZE_PX, PATCH_SIZE_PX

if TYPE_CHECKING:
    from pathlib import Path

INITIAL_STD = 0.06


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of the model; heads are 32 wide throughout."""

    vision_width: int = 128
    vision_layers: int = 4
    vision_feed_forward: int = 384
    width: int = 192
    layers: int = 8
    kv_heads: int = 3
    feed_forward: int = 384


def build_config(shape: ModelShape) -> LlavaConfig:
    """Return the LLaVA configuration of the given sizes."""
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_width,
        intermediate_size=shape.vision_feed_forward,
        projection_dim=shape.vision_width,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_width // 32,
        image_size=IMAGE_SIZE_PX,
        patch_size=PATCH_SIZE_PX,
        initializer_factor=2.0,
    )
    text = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // 32,
        num_key_value_heads=shape.kv_heads,
        head_dim=32,
        max_position_embeddings=1024,
        initializer_range=INITIAL_STD,
        bos_token_id=TOKEN_IDS[BOS],
        eos_token_id=TOKEN_IDS[EOS],
        pad_token_id=TOKEN_IDS[PAD],
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=TOKEN_IDS[IMAGE],
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        image_seq_length=NUM_VISUAL_TOKENS,
        tie_word_embeddings=False,
    )


def build_model(shape: ModelShape) -> LlavaForConditionalGeneration:
    """Return a freshly initialised model; std 0.02 barely learns at this width, 0.06 does."""
    model = LlavaForConditionalGeneration(build_config(shape))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "position_embedding" not in name:
            torch.nn.init.normal_(parameter, std=INITIAL_STD)
    return model


def save_checkpoint(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write the model as float16 safetensors with tokenizer, processor and generation settings."""
    folder.mkdir(parents=True, exist_ok=True)
    half = LlavaForConditionalGeneration(model.config)
    half.load_state_dict(model.state_dict())
    half = half.to(torch.float16)
    half.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=8,
        bos_token_id=TOKEN_IDS[BOS],
        eos_token_id=TOKEN_IDS[EOS],
        pad_token_id=TOKEN_IDS[PAD],
    )
    half.save_pretrained(folder)
    save_processor(build_processor(), folder)
    # Weights are written readable by their owner only, and a wheel would keep that.
    (folder / "model.safetensors").chmod(0o644)
