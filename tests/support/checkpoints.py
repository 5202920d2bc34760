"""Tiny random LLaVA checkpoints, made with transformers: real files, no download.

Every tensor is drawn at random, biases and norms included: transformers initialises biases to
zero and norm weights to one, which would hide a bias or a norm that an exporter forgot.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "CHATML_TEMPLATE",
    "IMAGE_TOKEN",
    "VICUNA_TEMPLATE",
    "generation_config",
    "randomise",
    "tiny_llava",
    "tiny_text_config",
    "tiny_tokenizer",
    "tiny_vision_config",
]

Vision = Literal["clip", "siglip", "dinov2", "vit"]
Text = Literal["llama", "mistral", "qwen2", "qwen3"]

IMAGE_TOKEN = "<image>"  # noqa: S105 - a token of the tokenizer, no secret

VICUNA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'].upper() + ': ' }}"
    "{% for item in message['content'] if item['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for item in message['content'] if item['type'] == 'text' %}"
    "{{ item['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<image>\n"
    "{% elif item['type'] == 'text' %}{{ item['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_CORPUS = [
    "USER: ASSISTANT: You are a helpful assistant. system user assistant",
    "Where is the red circle? What colour is the large square? How many triangles are there?",
    "The blue star is left of the green diamond. There are three objects. Yes, no, none.",
    "It doesn't matter: he 's here , and they don't care . I 'm sure .",
]


def tiny_tokenizer(text: Text) -> transformers.PreTrainedTokenizerFast:
    """A trained BPE tokenizer: llama-like (metaspace, byte fallback, BOS) or qwen2-like."""
    if text.startswith("qwen"):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    else:
        # The 256 byte tokens are plain vocabulary in a Llama tokenizer; the trainer takes them
        # as special tokens only to reserve their ids, they are turned into plain ones below.
        special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        tokenizer = Tokenizer(models.BPE(unk_token=special[0], byte_fallback=True, fuse_unk=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
        alphabet = []
        named = dict(zip(("unk_token", "bos_token", "eos_token"), special, strict=False))
        named["pad_token"] = special[0]
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + len(alphabet) + 100,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer = _without_byte_specials(tokenizer)
    if not text.startswith("qwen"):
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        model_input_names=["input_ids", "attention_mask"],
        **named,
    )


def _without_byte_specials(tokenizer: Tokenizer) -> Tokenizer:
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [
        token for token in document["added_tokens"] if not token["content"].startswith("<0x")
    ]
    rebuilt: Tokenizer = Tokenizer.from_str(json.dumps(document))
    return rebuilt


def tiny_llava(
    folder: Path,
    *,
    vision: Vision = "clip",
    text: Text = "llama",
    num_layers: int = 2,
    image_size: int = 28,
    patch_size: int = 7,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str | int = "5GB",
    seed: int = 0,
    vision_overrides: dict[str, Any] | None = None,
    llava_overrides: dict[str, Any] | None = None,
    **text_overrides: Any,
) -> Path:
    """Write a random LlavaForConditionalGeneration with its tokenizer and processor.

    Args:
        folder: Where the checkpoint is written; created if absent.
        vision: Vision encoder: SigLIP has no class token, of the others it is dropped.
        text: Decoder family; the Qwens come with a ChatML template, the others with a Vicuna one.
        num_layers: Decoder layers.
        image_size: Side of the square image, pixels.
        patch_size: Side of a patch, pixels; (image_size // patch_size) ** 2 visual tokens.
        dtype: Data type of the saved tensors.
        max_shard_size: As in `save_pretrained`; small values write several shards and an index.
        seed: Seed of every weight.
        vision_overrides: Fields of the vision config to replace.
        llava_overrides: Fields of LlavaConfig to replace, such as vision_feature_layer.
        **text_overrides: Fields of the text config to replace, such as tie_word_embeddings.

    Returns:
        The folder.
    """
    tokenizer = tiny_tokenizer(text)
    config = transformers.LlavaConfig(
        vision_config=tiny_vision_config(vision, image_size, patch_size, vision_overrides or {}),
        text_config=tiny_text_config(text, num_layers, tokenizer, text_overrides),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(image_size // patch_size) ** 2,
        **{
            "vision_feature_select_strategy": "full" if vision == "siglip" else "default",
            "tie_word_embeddings": text_overrides.get("tie_word_embeddings", False),
            **(llava_overrides or {}),
        },
    )
    model = transformers.LlavaForConditionalGeneration(config)
    randomise(model, seed=seed)
    model.generation_config = generation_config(tokenizer)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    _save_processor(folder, vision, tokenizer, config, text)
    return folder


def generation_config(
    tokenizer: transformers.PreTrainedTokenizerFast,
) -> transformers.GenerationConfig:
    """The special tokens of a tokenizer."""
    return transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def tiny_vision_config(
    vision: Vision, image_size: int, patch_size: int, overrides: dict[str, Any]
) -> transformers.PreTrainedConfig:
    """Three layers, 32 wide; ``overrides`` replaces fields."""
    fields: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": image_size,
        "patch_size": patch_size,
        **overrides,
    }
    if vision == "clip":
        return transformers.CLIPVisionConfig(**{"projection_dim": 32, **fields})
    if vision == "dinov2":
        return transformers.Dinov2Config(**fields)
    if vision == "vit":
        return transformers.ViTConfig(**fields)
    return transformers.SiglipVisionConfig(**fields)


def tiny_text_config(
    text: Text,
    num_layers: int,
    tokenizer: transformers.PreTrainedTokenizerFast,
    overrides: dict[str, Any],
) -> transformers.PreTrainedConfig:
    """A decoder 64 wide with four heads, two for keys; ``overrides`` replaces fields."""
    fields: dict[str, Any] = {
        "vocab_size": len(tokenizer) + 3,  # padded past the tokenizer, as real checkpoints are
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **overrides,
    }
    kinds = {
        "llama": transformers.LlamaConfig,
        "mistral": transformers.MistralConfig,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
    }
    return kinds[text](**fields)


def randomise(model: torch.nn.Module, *, seed: int) -> None:
    """Draw every parameter; the scale keeps activations near one and logits well apart."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1.0 + 0.1 * noise)
            elif parameter.ndim < 2 or "embed" in name:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)


def _save_processor(
    folder: Path,
    vision: Vision,
    tokenizer: transformers.PreTrainedTokenizerFast,
    config: transformers.LlavaConfig,
    text: Text,
) -> None:
    side = config.vision_config.image_size
    if vision == "siglip":
        image_processor = SiglipImageProcessorPil(size={"height": side, "width": side})
    else:
        image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
    processor = transformers.LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=0 if vision == "siglip" else 1,
        chat_template=CHATML_TEMPLATE if text.startswith("qwen") else VICUNA_TEMPLATE,
    )
    processor.save_pretrained(folder)
    image_processor.save_pretrained(folder)  # preprocessor_config.json, the older layout
