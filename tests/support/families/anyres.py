"""Tiny random LLaVA-NeXT and LLaVA-OneVision checkpoints, and their reference."""

from __future__ import annotations

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
from transformers.models.llava_next.modeling_llava_next import unpad_image

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ReferenceLlavaNext", "tiny_llava_next"]


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


class ReferenceLlavaNext(ReferenceVlm):
    """LLaVA-NeXT: newlines are text, which the values of the features tell."""

    picture_inputs = ("pixel_values", "image_sizes")

    def is_visual(self, features: torch.Tensor) -> torch.Tensor:
        return (features != self.model.model.image_newline).any(dim=-1)

    def grids(self, inputs: dict[str, torch.Tensor]) -> list[tuple[int, int]]:
        """Return the thumbnail's grid and that of what transformers leaves after unpadding."""
        vision = self.model.config.vision_config
        side = vision.image_size // vision.patch_size
        grids: list[tuple[int, ...]] = []
        for size in inputs["image_sizes"].tolist():
            rows, columns = self._tiles(size)
            blank = torch.empty(1, rows * side, columns * side)
            grids += [(side, side), tuple(unpad_image(blank, size).shape[1:])]
        return [grid for grid in grids if all(grid)]

    def encoder_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Without the tiles that only pad the batch."""
        sizes = inputs["image_sizes"].tolist()
        tiles = [
            pixels[: 1 + math.prod(self._tiles(size))]
            for size, pixels in zip(sizes, inputs["pixel_values"], strict=True)
        ]
        return {"pixel_values": torch.cat(tiles).numpy()}

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
