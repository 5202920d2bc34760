"""Tiny random LLaVA-NeXT and LLaVA-OneVision checkpoints, and their reference."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from support.checkpoints import (
    CHATML_TEMPLATE,
    IMAGE_TOKEN,
    VICUNA_TEMPLATE,
    Text,
    Vision,
    generation_config,
    randomise,
    tiny_text_config,
    tiny_tokenizer,
    tiny_vision_config,
)
from support.reference import ReferenceVlm
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "ReferenceLlavaNext",
    "ReferenceLlavaOnevision",
    "tiny_llava_next",
    "tiny_llava_onevision",
]


ONEVISION_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for item in message['content'] if item['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for item in message['content'] if item['type'] == 'video' %}{{ '<video>' }}{% endfor %}"
    "{% for item in message['content'] if item['type'] == 'text' %}"
    "{{ '\n' + item['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_llava_next(
    folder: Path,
    *,
    vision: Vision = "clip",
    text: Text = "llama",
    num_layers: int = 2,
    image_size: int = 28,
    patch_size: int = 7,
    canvases: tuple[tuple[int, int], ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)),
    seed: int = 0,
    config_overrides: dict[str, Any] | None = None,
    **text_overrides: Any,
) -> Path:
    """Write a random LlavaNextForConditionalGeneration; see ``support.checkpoints.tiny_llava``.

    Args:
        canvases: (rows, columns) of tiles that a picture may be fitted into.
        config_overrides: fields of LlavaNextConfig to replace.
    """
    tokenizer = tiny_tokenizer(text)
    pinpoints = [[rows * image_size, columns * image_size] for rows, columns in canvases]
    config = transformers.LlavaNextConfig(
        vision_config=tiny_vision_config(vision, image_size, patch_size, {}),
        text_config=tiny_text_config(text, num_layers, tokenizer, text_overrides),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_grid_pinpoints=pinpoints,
        **{
            "vision_feature_select_strategy": "full" if vision == "siglip" else "default",
            **(config_overrides or {}),
        },
    )
    model = transformers.LlavaNextForConditionalGeneration(config)
    randomise(model, seed=seed)
    model.generation_config = generation_config(tokenizer)
    model.save_pretrained(folder)
    image_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        image_grid_pinpoints=pinpoints,
    )
    processor = transformers.LlavaNextProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=0 if vision == "siglip" else 1,
        chat_template=CHATML_TEMPLATE if text.startswith("qwen") else VICUNA_TEMPLATE,
    )
    processor.save_pretrained(folder)
    image_processor.save_pretrained(folder)  # preprocessor_config.json, the older layout
    return folder


def tiny_llava_onevision(
    folder: Path,
    *,
    text: Text = "qwen2",
    num_layers: int = 2,
    image_size: int = 28,
    patch_size: int = 7,
    num_sides: int = 3,
    max_tiles: int = 3,
    seed: int = 0,
    config_overrides: dict[str, Any] | None = None,
    **text_overrides: Any,
) -> Path:
    """Write a random LlavaOnevisionForConditionalGeneration; see ``tiny_llava_next``.

    Args:
        num_sides: canvases have 1 to this many tiles on each side.
        max_tiles: N of anyres_max_N.
    """
    tokenizer = tiny_tokenizer(text)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<video>"]})
    sides = [image_size * (number + 1) for number in range(num_sides)]
    pinpoints = [[height, width] for height in sides for width in sides]
    config = transformers.LlavaOnevisionConfig(
        vision_config=tiny_vision_config("siglip", image_size, patch_size, {}),
        text_config=tiny_text_config(text, num_layers, tokenizer, text_overrides),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio=f"anyres_max_{max_tiles}",
        **(config_overrides or {}),
    )
    model = transformers.LlavaOnevisionForConditionalGeneration(config)
    randomise(model, seed=seed)
    model.generation_config = generation_config(tokenizer)
    model.save_pretrained(folder)
    image_processor = LlavaOnevisionImageProcessorPil(
        size={"height": image_size, "width": image_size}, image_grid_pinpoints=pinpoints
    )
    # The layout of published checkpoints: each part in a file of its own.
    image_processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(ONEVISION_TEMPLATE)
    settings = {
        "processor_class": "LlavaOnevisionProcessor",
        "num_image_tokens": (image_size // patch_size) ** 2,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "vision_aspect_ratio": config.vision_aspect_ratio,
    }
    (folder / "processor_config.json").write_text(json.dumps(settings))
    return folder


class _PictureProcessor(transformers.LlavaOnevisionProcessor):
    """The processor, which without torchvision has no part for videos."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return type(argument)


class ReferenceLlavaNext(ReferenceVlm):
    """LLaVA-NeXT: newlines are text, which the values of the features tell."""

    picture_inputs = ("pixel_values", "image_sizes")

    def is_visual(self, features: torch.Tensor) -> torch.Tensor:
        return (features != self.model.model.image_newline).any(dim=-1)

    @torch.no_grad()
    def grids(self, inputs: dict[str, torch.Tensor]) -> list[tuple[int, int]]:
        """Return the grid of each raster: newlines tell the stitched rasters' number of rows."""
        vision = self.model.config.vision_config
        side = vision.image_size // vision.patch_size
        grids = []
        for features in self.features_by_picture(inputs):
            grids.append((side, side))
            num_visual = int(self.is_visual(features).sum()) - side**2
            if num_visual:
                num_rows = len(features) - side**2 - num_visual
                grids.append((num_rows, num_visual // num_rows))
        return grids

    def encoder_calls(self, inputs: dict[str, torch.Tensor]) -> list[dict[str, np.ndarray]]:
        """Without the tiles that only pad the batch."""
        sizes = inputs["image_sizes"].tolist()
        tiles = [
            pixels[: 1 + math.prod(self._tiles(size))]
            for size, pixels in zip(sizes, inputs["pixel_values"], strict=True)
        ]
        return [{"pixel_values": torch.cat(tiles).numpy()}]

    def changed_features(
        self, before: dict[str, np.ndarray], after: dict[str, np.ndarray]
    ) -> np.ndarray:
        newline = [False]
        return np.append(super().changed_features(before, after), newline)

    def _tiles(self, size: list[int]) -> tuple[int, int]:
        """Return rows and columns of the tiles of a picture of ``size`` (height, width)."""
        config = self.model.config
        side = config.vision_config.image_size
        height, width = select_best_resolution(tuple(size), config.image_grid_pinpoints)
        return height // side, width // side


class ReferenceLlavaOnevision(ReferenceLlavaNext):
    """LLaVA-OneVision: a picture among others is one tile."""

    picture_inputs = ("pixel_values", "image_sizes", "batch_num_images")

    def load_processor(self, folder: Path) -> Any:
        """Return the processor without the part for videos, which wants torchvision."""
        settings = json.loads((folder / "processor_config.json").read_text())
        names = ("num_image_tokens", "vision_feature_select_strategy", "vision_aspect_ratio")
        return _PictureProcessor(
            image_processor=LlavaOnevisionImageProcessorPil.from_pretrained(folder),
            tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
            chat_template=(folder / "chat_template.jinja").read_text(),
            **{name: settings[name] for name in names},
        )

    def encoder_calls(self, inputs: dict[str, torch.Tensor]) -> list[dict[str, np.ndarray]]:
        if inputs["batch_num_images"].tolist() == [1]:
            return super().encoder_calls(inputs)
        return [{"pixel_values": inputs["pixel_values"].flatten(0, 1).numpy()}]
