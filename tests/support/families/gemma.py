"""Tiny random PaliGemma and Gemma 3 checkpoints, and their reference runs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from support.checkpoints import randomise, tiny_tokenizer
from support.reference import ReferenceVlm
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.reference import ReferenceRows

__all__ = ["Gemma3Reference", "PaliGemmaReference", "tiny_gemma3", "tiny_paligemma"]

GEMMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + message['role'] + '\n' }}"
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vision_use_head": False,
}


def tiny_paligemma(folder: Path, *, text: str = "gemma", **text_overrides: Any) -> Path:
    """Write a random PaliGemma (text gemma) or PaliGemma 2 (gemma2); returns the folder."""
    tokenizer = _tokenizer({"image_token": "<image>"})
    side, patch = (56, 7) if text == "gemma" else (45, 6)  # 45 pixels: 3 that no patch covers
    kind = {"gemma": transformers.GemmaConfig, "gemma2": transformers.Gemma2Config}[text]
    own: dict[str, Any] = {
        "gemma": {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16},
        "gemma2": {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 24,
            "query_pre_attn_scalar": 40,
            "sliding_window": 20,
            # So low that an answer without them is another one.
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 2.0,
        },
    }[text]
    config = transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(image_size=side, patch_size=patch, **VISION),
        text_config=kind(**{**_text_fields(tokenizer), **own, **text_overrides}),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=64,
        tie_word_embeddings=text == "gemma",
    )
    pictures = SiglipImageProcessorPil(size={"height": side, "width": side})
    pictures.image_seq_length = (side // patch) ** 2
    _save(folder, transformers.PaliGemmaForConditionalGeneration(config), tokenizer)
    transformers.PaliGemmaProcessor(pictures, tokenizer).save_pretrained(folder)
    return folder


def tiny_gemma3(folder: Path, *, shape: str = "windowed", **text_overrides: Any) -> Path:
    """Write a random Gemma 3; "windowed" sees less than a picture, "scaled" turns slower."""
    marks = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = _tokenizer({"image_token": "<image_soft_token>", **marks})
    side, patch, num_tokens = (64, 8, 16) if shape == "windowed" else (60, 5, 36)
    own: dict[str, Any] = {
        "windowed": {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 9,
            "sliding_window_pattern": 3,
        },
        "scaled": {
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "query_pre_attn_scalar": 20,
            "sliding_window": 64,
            "layer_types": ["full_attention", *["sliding_attention"] * 4, "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
            },
        },
    }[shape]
    config = transformers.Gemma3Config(
        vision_config=transformers.SiglipVisionConfig(image_size=side, patch_size=patch, **VISION),
        text_config=transformers.Gemma3TextConfig(
            **{**_text_fields(tokenizer), **own, **text_overrides}
        ),
        mm_tokens_per_image=num_tokens,
        tie_word_embeddings=shape == "windowed",
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
    )
    pictures = Gemma3ImageProcessorPil(size={"height": side, "width": side})
    _save(folder, transformers.Gemma3ForConditionalGeneration(config), tokenizer)
    transformers.Gemma3Processor(
        pictures, tokenizer, chat_template=GEMMA3_TEMPLATE, image_seq_length=num_tokens
    ).save_pretrained(folder)
    return folder


class _GemmaReference(ReferenceVlm):
    """What the decoders of all Gemmas share."""

    _at = 0
    """Layer that is being run or scored: its kind says which rotary embedding and mask it has."""

    def prepare(self, images: list[Any], prompt: str) -> dict[str, torch.Tensor]:
        """Return the processor's output without what only training reads."""
        inputs = super().prepare(images, prompt)
        inputs.pop("labels", None)
        return inputs

    def embed(self, inputs: dict[str, torch.Tensor]) -> ReferenceRows:
        """Return the prompt's embeddings, and remember which pictures its rows belong to."""
        self._blocks = self.blocks(inputs)
        return super().embed(inputs)

    def blocks(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return a number for each row [S]: rows of one see each other; -1 for causal rows."""
        raise NotImplementedError

    def window(self, layer: int) -> int | None:
        """Return how many positions a layer sees."""
        return self.decoder.layers[layer].self_attn.sliding_window

    def same_block(self, positions: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Return which slots [S,T] are in the block of a row."""
        blocks = torch.cat([self._blocks, self._blocks.new_full((1000,), -1)])
        return (blocks[positions][:, None] == blocks[slots][None]) & (blocks[slots] >= 0)[None]

    def _layer(
        self, layer: int, hidden: torch.Tensor, positions: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        self._at = layer
        return super()._layer(layer, hidden, positions, cache)

    def _scores(
        self, rows: ReferenceRows, captured: dict[str, torch.Tensor], method: str, layer: int
    ) -> torch.Tensor:
        self._at = layer
        return super()._scores(rows, captured, method, layer)


class PaliGemmaReference(_GemmaReference):
    """The whole prompt sees itself both ways, in local layers too; positions count from 1."""

    def prepare(self, images: list[Any], prompt: str) -> dict[str, torch.Tensor]:
        """Return the processor's output; there is no template."""
        text = "<image>" * len(images) + prompt
        inputs = dict(self.processor(images=[images], text=[text]))
        inputs.pop("labels", None)
        return {name: torch.tensor(np.array(values)) for name, values in inputs.items()}

    def blocks(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the one block of the prompt."""
        return torch.zeros(inputs["input_ids"].shape[1], dtype=torch.int64)

    def window(self, layer: int) -> int | None:
        """Return how many positions a layer sees; Gemma's first version has no windows."""
        return getattr(self.decoder.layers[layer].self_attn, "sliding_window", None)

    def visible(self, layer: int, positions: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Return which slots [T] rows see: a window of what is causal, or the block."""
        visible = super().visible(layer, positions, slots)
        if window := self.window(layer):
            visible &= positions[:, None] - slots[None] < window
        return visible | self.same_block(positions, slots)

    def rotary(
        self, hidden: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the decoder's cos and sin [1,S,Dh] of rows at ``positions`` [1,S]."""
        return super().rotary(hidden, positions + 1)

    def _logits(self, hidden: torch.Tensor) -> Any:
        logits = super()._logits(hidden)
        cap = getattr(self.model.config.text_config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(torch.tensor(logits) / cap).numpy()


class Gemma3Reference(_GemmaReference):
    """The tokens of a picture see each other both ways, local layers within their window."""

    def grids(self, inputs: dict[str, torch.Tensor]) -> list[tuple[int, int]]:
        """Return (height, width) of each raster of visual tokens, in the order of the prompt."""
        side = round(self.model.config.mm_tokens_per_image**0.5)
        return [(side, side)] * len(inputs.get("pixel_values", ()))

    @property
    def token_side(self) -> int:
        """Side in pixels of the square that one visual token is made of."""
        config = self.model.config
        return int(config.vision_config.image_size // config.mm_tokens_per_image**0.5)

    def blocks(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the number of the picture of each row."""
        is_image = inputs["input_ids"][0] == self.model.config.image_token_id
        begins = is_image & ~torch.cat([is_image[:1] & False, is_image[:-1]])
        return torch.where(is_image, begins.cumsum(0) - 1, -1)

    def visible(self, layer: int, positions: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Return which slots [T] rows see: what is causal or of one picture, in the window."""
        visible = super().visible(layer, positions, slots) | self.same_block(positions, slots)
        if window := self.window(layer):
            visible &= positions[:, None] - slots[None] < window
        return visible

    def rotary(
        self, hidden: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin [1,S,Dh] of the kind of layer that is being run."""
        kind = self.model.config.text_config.layer_types[self._at]
        return self.decoder.rotary_emb(hidden, positions, kind)

    def angles(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the rotary angles [n,Dh/2] of ``positions`` [n], in layers that see all."""
        return positions[:, None] * self.decoder.rotary_emb.full_attention_inv_freq.double()

    @contextmanager
    def _captured_projections(self, layer: int) -> Iterator[dict[str, torch.Tensor]]:
        """Catch queries and keys after their norms, which here see [1, heads, S, Dh]."""
        captured: dict[str, torch.Tensor] = {}
        attention = self.decoder.layers[layer].self_attn
        hooks = [
            getattr(attention, f"{part}_norm").register_forward_hook(
                lambda _module, _args, output, part=part: captured.__setitem__(
                    part, output[0].transpose(0, 1).flatten(1)
                )
            )
            for part in ("q", "k")
        ]
        hooks.append(
            attention.v_proj.register_forward_hook(
                lambda _module, _args, output: captured.__setitem__("v", output[0])
            )
        )
        yield captured
        for hook in hooks:
            hook.remove()


def _tokenizer(extra: dict[str, str]) -> transformers.PreTrainedTokenizerFast:
    plain = tiny_tokenizer("llama")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer,
        extra_special_tokens={
            **extra,
            "sot_token": "<start_of_turn>",
            "eot_token": "<end_of_turn>",
        },
        model_input_names=["input_ids", "attention_mask"],
        **{
            name: getattr(plain, name)
            for name in ("unk_token", "bos_token", "eos_token", "pad_token")
        },
    )


def _text_fields(tokenizer: transformers.PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        # PaliGemma's processor adds its 1152 tokens for places and masks.
        "vocab_size": len(tokenizer) + 1160,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 6,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _save(folder: Path, model: Any, tokenizer: transformers.PreTrainedTokenizerFast) -> None:
    randomise(model, seed=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and "vision_tower" not in name:
                parameter.sub_(1.0)  # these store what is added to 1
        if model.config.tie_word_embeddings:
            # Scaled up at the entrance, a tied table would answer each token with itself.
            model.get_input_embeddings().weight.mul_(0.15)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
