"""Tiny random InternVL checkpoints in transformers' layout, and their reference."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import transformers
from support.checkpoints import generation_config, randomise, tiny_text_config, tiny_tokenizer
from support.reference import ReferenceVlm
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from support.checkpoints import Text

__all__ = ["ReferenceInternVl", "tiny_internvl"]

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif item['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif item['type'] == 'text' %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

SPECIAL = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def tiny_internvl(
    folder: Path,
    *,
    text: Text = "qwen2",
    num_layers: int = 2,
    image_size: int = 28,
    patch_size: int = 7,
    min_patches: int = 1,
    max_patches: int = 6,
    downsample_ratio: float = 0.5,
    tie_word_embeddings: bool = False,
    seed: int = 0,
    vision_overrides: dict[str, Any] | None = None,
    config_overrides: dict[str, Any] | None = None,
    **text_overrides: Any,
) -> Path:
    """Write a random InternVLForConditionalGeneration; see ``support.checkpoints.tiny_llava``.

    Args:
        min_patches: fewest tiles of a picture.
        max_patches: most tiles of a picture.
        downsample_ratio: 1 / n joins n x n patches.
    """
    tokenizer = _tokenizer(text)
    text_overrides["tie_word_embeddings"] = tie_word_embeddings
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": [image_size, image_size],
        "patch_size": [patch_size, patch_size],
        **(vision_overrides or {}),
    }
    config = transformers.InternVLConfig(
        vision_config=transformers.InternVLVisionConfig(**vision),
        text_config=tiny_text_config(text, num_layers, tokenizer, text_overrides),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        downsample_ratio=downsample_ratio,
        tie_word_embeddings=tie_word_embeddings,
        **(config_overrides or {}),
    )
    model = transformers.InternVLForConditionalGeneration(config)
    randomise(model, seed=seed)
    model.generation_config = generation_config(tokenizer)
    model.save_pretrained(folder)
    image_processor = GotOcr2ImageProcessorPil(
        size={"height": image_size, "width": image_size},
        min_patches=min_patches,
        max_patches=max_patches,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    # The layout of published checkpoints: each part in a file of its own.
    image_processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    num_tokens = int((image_size // patch_size * downsample_ratio) ** 2)
    settings = {"processor_class": "InternVLProcessor", "image_seq_length": num_tokens}
    (folder / "processor_config.json").write_text(json.dumps(settings))
    return folder


class _PictureProcessor(transformers.InternVLProcessor):
    """The processor, which without torchvision has no part for videos."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return type(argument)


class ReferenceInternVl(ReferenceVlm):
    """InternVL: every tile and the thumbnail is a raster."""

    def load_processor(self, folder: Path) -> Any:
        """Return the processor without the part for videos, which wants torchvision."""
        settings = json.loads((folder / "processor_config.json").read_text())
        return _PictureProcessor(
            image_processor=GotOcr2ImageProcessorPil.from_pretrained(folder),
            tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
            chat_template=(folder / "chat_template.jinja").read_text(),
            image_seq_length=settings["image_seq_length"],
        )

    def grids(self, inputs: dict[str, torch.Tensor]) -> list[tuple[int, int]]:
        """Return the grid of every tile and thumbnail."""
        side = self.model.config.vision_config.image_size[0] // self.token_side
        return [(side, side)] * len(inputs["pixel_values"])

    @property
    def token_side(self) -> int:
        """Side in pixels of the square that one visual token is made of."""
        config = self.model.config
        return round(config.vision_config.patch_size[0] / config.downsample_ratio)


def _tokenizer(text: Text) -> transformers.PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer(text)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        extra_special_tokens=SPECIAL,
        **tokenizer.special_tokens_map,
    )
