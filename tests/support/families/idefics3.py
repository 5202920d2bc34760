"""Tiny random Idefics3 and SmolVLM checkpoints, and their reference run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import transformers
from support.checkpoints import randomise, tiny_tokenizer
from support.reference import ReferenceVlm
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

if TYPE_CHECKING:
    from pathlib import Path

    import torch

__all__ = ["Idefics3Reference", "image_processor", "tiny_idefics3"]

Kind = Literal["idefics3", "smolvlm"]

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}"
    "{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}"
    "{% elif line['type'] == 'video' %}{{ '<video>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

SHAPES: dict[Kind, dict[str, Any]] = {
    # 9 x 9 patches of 4 pixels in tiles of 38, whose last two pixels no patch covers.
    "idefics3": {"image_size": 38, "patch_size": 4, "scale_factor": 3, "longest_edge": 114},
    "smolvlm": {"image_size": 32, "patch_size": 4, "scale_factor": 2, "longest_edge": 64},
}


def image_processor(kind: Kind, **overrides: Any) -> Idefics3ImageProcessorPil:
    """The image processor of ``tiny_idefics3``."""
    shape = SHAPES[kind]
    return Idefics3ImageProcessorPil(
        **{
            "size": {"longest_edge": shape["longest_edge"]},
            "max_image_size": {"longest_edge": shape["image_size"]},
            **overrides,
        }
    )


def tiny_idefics3(
    folder: Path,
    kind: Kind,
    *,
    num_layers: int = 6,
    processor_overrides: dict[str, Any] | None = None,
    **overrides: Any,
) -> Path:
    """Write a random checkpoint with its tokenizer and processor; returns the folder."""
    tokenizer = _tokenizer(kind)
    shape = SHAPES[kind]
    vision_kind, kind_config, kind_model = {
        "idefics3": (
            transformers.Idefics3VisionConfig,
            transformers.Idefics3Config,
            transformers.Idefics3ForConditionalGeneration,
        ),
        "smolvlm": (
            transformers.SmolVLMVisionConfig,
            transformers.SmolVLMConfig,
            transformers.SmolVLMForConditionalGeneration,
        ),
    }[kind]
    vision = vision_kind(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=shape["image_size"],
        patch_size=shape["patch_size"],
    )
    text = transformers.LlamaConfig(
        vocab_size=len(tokenizer) + 3,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=num_layers,
        num_attention_heads=6,
        num_key_value_heads=2 if kind == "smolvlm" else 3,
        max_position_embeddings=1024,
        rope_theta=100000.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = kind_config(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=shape["scale_factor"],
        **overrides,
    )
    model = kind_model(config)
    randomise(model, seed=1)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    pictures = image_processor(kind, **(processor_overrides or {}))
    grid = shape["image_size"] // shape["patch_size"] // shape["scale_factor"]
    # SmolVLM's own processor class wants packages for videos; for pictures it does the same.
    transformers.Idefics3Processor(
        pictures, tokenizer, image_seq_len=grid**2, chat_template=TEMPLATE
    ).save_pretrained(folder)
    return folder


class Idefics3Reference(ReferenceVlm):
    """One raster per tile, and one of the whole picture."""

    picture_inputs = ("pixel_values", "pixel_attention_mask")

    def grids(self, inputs: dict[str, torch.Tensor]) -> list[tuple[int, int]]:
        """Return (height, width) of each raster of visual tokens, in the order of the prompt."""
        config = self.model.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        grid = (side // config.scale_factor,) * 2
        return [grid] * (inputs["pixel_values"].shape[1] if "pixel_values" in inputs else 0)

    def encoder_calls(self, inputs: dict[str, torch.Tensor]) -> list[dict[str, np.ndarray]]:
        """Return the tiles of all pictures, [N,3,H,W]."""
        return [{"pixel_values": inputs["pixel_values"][0].numpy()}]

    def changed_features(
        self, before: dict[str, np.ndarray], after: dict[str, np.ndarray]
    ) -> np.ndarray:
        """Return which visual tokens see pixels that differ, more than a blur makes of it.

        Two resizes carry a little of a box into the tile beside it.
        """
        differ = np.abs(before["pixel_values"] - after["pixel_values"]).max(axis=1)  # [N,H,W]
        number, height, width = differ.shape
        side = self.token_side
        rows, columns = height // side, width // side
        seen = differ[:, : rows * side, : columns * side].reshape(
            number, rows, side, columns, side
        )
        return (seen.mean(axis=(2, 4)) > 0.2).ravel()

    @property
    def token_side(self) -> int:
        """Side in pixels of the square that one visual token is made of."""
        config = self.model.config
        return int(config.vision_config.patch_size * config.scale_factor)


def _tokenizer(kind: Kind) -> transformers.PreTrainedTokenizerFast:
    """SmolVLM's has a start token and no rule that writes it; Idefics3's writes it."""
    tokenizer = tiny_tokenizer("llama" if kind == "idefics3" else "qwen2")
    names = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    extra = ["<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *names]
    start = {"bos_token": "<|im_start|>"} if kind == "smolvlm" else {}
    tokenizer.add_special_tokens(
        {"eos_token": "<end_of_utterance>", "additional_special_tokens": extra, **start}
    )
    return tokenizer
