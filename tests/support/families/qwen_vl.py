"""Tiny random Qwen-VL checkpoints, as published ones are laid out, and their reference run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from support.checkpoints import randomise, tiny_tokenizer
from support.reference import ReferenceRows, ReferenceVlm
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

__all__ = ["MODELS", "QwenVlReference", "tiny_qwen_vl"]

TEMPLATE = (
    "{% set pictures = namespace(seen=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'image' or 'image' in item or 'image_url' in item %}"
    "{% set pictures.seen = pictures.seen + 1 %}"
    "{% if add_vision_id %}{{ 'Picture ' ~ pictures.seen ~ ': ' }}{% endif %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif item['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% elif 'text' in item %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

SPECIAL = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]

MODELS = {
    "qwen2_vl": (transformers.Qwen2VLConfig, transformers.Qwen2VLForConditionalGeneration),
    "qwen2_5_vl": (
        transformers.Qwen2_5_VLConfig,
        transformers.Qwen2_5_VLForConditionalGeneration,
    ),
    "qwen3_vl": (transformers.Qwen3VLConfig, transformers.Qwen3VLForConditionalGeneration),
}

_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}

SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "qwen2_vl": {
        "hub": {
            "vision": {"depth": 2, "embed_dim": 32, "mlp_ratio": 2, "num_heads": 2,
                       "hidden_size": 64, "patch_size": 14, "hidden_act": "quick_gelu"},
            "text": {"mrope_section": [2, 3, 3], "rope_theta": 1e6},
        },
        "saved": {
            "vision": {"depth": 3, "embed_dim": 24, "mlp_ratio": 4, "num_heads": 3,
                       "hidden_size": 48, "patch_size": 7, "hidden_act": "gelu"},
            "text": {"mrope_section": [4, 4, 4], "rope_theta": 5e4, "hidden_size": 48,
                     "num_attention_heads": 2, "num_key_value_heads": 1},
        },
    },
    "qwen2_5_vl": {
        "hub": {
            "vision": {"depth": 3, "hidden_size": 32, "intermediate_size": 40, "num_heads": 2,
                       "out_hidden_size": 64, "patch_size": 14, "window_size": 56,
                       "fullatt_block_indexes": [1]},
            "text": {"mrope_section": [2, 3, 3], "rope_theta": 1e6},
        },
        "saved": {
            "vision": {"depth": 3, "hidden_size": 48, "intermediate_size": 36, "num_heads": 3,
                       "out_hidden_size": 48, "patch_size": 7, "window_size": 50,
                       "fullatt_block_indexes": [0, 2], "hidden_act": "gelu"},
            "text": {"mrope_section": [4, 4, 4], "rope_theta": 5e4, "hidden_size": 48,
                     "num_attention_heads": 2, "num_key_value_heads": 1},
        },
    },
    "qwen3_vl": {
        "saved": {
            "vision": {"depth": 4, "hidden_size": 32, "intermediate_size": 40, "num_heads": 2,
                       "out_hidden_size": 64, "patch_size": 14, "num_position_embeddings": 36,
                       "deepstack_visual_indexes": [0, 2]},
            "text": {"mrope_section": [4, 2, 2], "rope_theta": 1e6, "head_dim": 16},
        },
        "wide": {
            "vision": {"depth": 3, "hidden_size": 48, "intermediate_size": 36, "num_heads": 3,
                       "out_hidden_size": 48, "patch_size": 7, "num_position_embeddings": 2500,
                       "deepstack_visual_indexes": [1], "hidden_act": "gelu"},
            "text": {"mrope_section": [5, 4, 3], "rope_theta": 5e4, "hidden_size": 48,
                     "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 24,
                     "attention_bias": True},
        },
    },
}  # fmt: skip
"""``hub`` is laid out as on the hub, ``saved`` as transformers 4.52 to 4.57 save it, which is how
Qwen3-VL is on the hub."""

OLDER_PREFIXES = {"visual.": "model.visual.", "model.": "model.language_model."}


def tiny_qwen_vl(
    folder: Path,
    *,
    model_type: str,
    layout: str,
    is_tied: bool = False,
    vision_overrides: dict[str, Any] | None = None,
    **text_overrides: Any,
) -> Path:
    """Write a random checkpoint with its tokenizer, image processor and template.

    Args:
        folder: where it is written.
        model_type: one of ``MODELS``.
        layout: one of ``SHAPES`` of the model type.
        is_tied: the head is the embedding table.
        vision_overrides: fields of the vision config to replace.
        **text_overrides: fields of the text config to replace.
    """
    shape, tokenizer = SHAPES[model_type][layout], _tokenizer()
    text = {**_TEXT, **shape["text"], "vocab_size": len(tokenizer) + 3, **text_overrides}
    rope = {name: text.pop(name) for name in ("mrope_section", "rope_theta")}
    vision = {**shape["vision"], **(vision_overrides or {})}
    ids = {name.strip("<|>"): tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    config_class, model_class = MODELS[model_type]
    config = config_class(
        text_config={
            **text,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "rope_parameters": {"rope_type": "default", **rope},
        },
        vision_config=vision,
        tie_word_embeddings=is_tied,
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    model = model_class(config)
    randomise(model, seed=1)
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _save_image_processor(folder, layout, patch_size=vision["patch_size"])
    if layout == "hub":
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
        _lay_out_as_on_the_hub(folder / "config.json", vision, rope)
    else:
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        if model_type != "qwen3_vl":
            _rename_tensors(folder / "model.safetensors")
    return folder


class QwenVlReference(ReferenceVlm):
    """Rasters of any size, and rows that have a time, a row and a column."""

    picture_inputs = ("pixel_values", "image_grid_thw")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._rope_index: torch.Tensor
        self._planes: list[torch.Tensor]

    def load_processor(self, folder: Path) -> Any:
        """Return the processor without the part for videos, which wants torchvision."""
        return _PictureProcessor(
            image_processor=Qwen2VLImageProcessorPil.from_pretrained(folder),
            tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
            chat_template=TEMPLATE,
        )

    def grids(self, inputs: dict[str, torch.Tensor]) -> list[tuple[int, int]]:
        """Return (height, width) of each raster of visual tokens, in the order of the prompt."""
        merge = self.processor.image_processor.merge_size
        sizes = inputs["image_grid_thw"].tolist() if "image_grid_thw" in inputs else []
        return [(height // merge, width // merge) for _, height, width in sizes]

    def encoder_calls(self, inputs: dict[str, torch.Tensor]) -> list[dict[str, np.ndarray]]:
        """Return the patches of each picture."""
        counts = inputs["image_grid_thw"].prod(dim=1).tolist()
        per_token = self.processor.image_processor.merge_size**2
        return [
            {"pixel_values": patches.unflatten(0, (-1, per_token)).numpy()}
            for patches in inputs["pixel_values"].split(counts)
        ]

    def changed_features(
        self, before: dict[str, np.ndarray], after: dict[str, np.ndarray]
    ) -> np.ndarray:
        """Return which rows of the graph's ``image_features`` see pixels that differ."""
        return (before["pixel_values"] != after["pixel_values"]).any(axis=(1, 2))

    @torch.no_grad()
    def embed(self, inputs: dict[str, torch.Tensor]) -> ReferenceRows:
        """Return the prompt's embeddings, and remember the coordinates of its rows."""
        self._rope_index, _ = self.model.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs.get("image_grid_thw"),
        )  # [3, 1, S]
        self._planes = []
        return super().embed(inputs)

    def image_features(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the visual tokens, and remember the planes of DeepStack [S, D], if any."""
        given = {name: inputs[name] for name in self.picture_inputs}
        output = self.model.model.get_image_features(**given)
        is_visual = inputs["input_ids"][0] == self.model.config.image_token_id
        for feature in getattr(output, "deepstack_features", None) or ():
            plane = torch.zeros(len(is_visual), self.model.config.text_config.hidden_size)
            plane[is_visual] = torch.cat(list(feature))
            self._planes.append(plane)
        return torch.cat(list(output.pooler_output))

    def _layer(
        self, layer: int, hidden: torch.Tensor, positions: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        output = super()._layer(layer, hidden, positions, cache)
        is_prefill = int(positions[0, 0]) < self._rope_index.shape[-1]
        if is_prefill and layer < len(self._planes):
            output = output + self._planes[layer][positions[0]]
        return output

    def rotary(
        self, hidden: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the decoder's cos and sin [1,S,Dh] of rows at ``positions`` [1,S]."""
        return self.decoder.rotary_emb(hidden, self._coordinates_of(positions[0])[:, None])

    def angles(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the rotary angles [n,Dh/2] of ``positions`` [n]."""
        coordinates, frequencies = self._coordinates_of(positions), self._frequencies_by_axis()
        return sum(
            axis[:, None] * turned for axis, turned in zip(coordinates, frequencies, strict=True)
        )

    def _frequencies_by_axis(self) -> torch.Tensor:
        """Return [3, Dh/2], zero where an axis does not turn a pair."""
        frequencies = self.decoder.rotary_emb.inv_freq.double()
        by_axis = torch.zeros(3, len(frequencies), dtype=torch.float64)
        sections = list(self.decoder.rotary_emb.mrope_section)
        if self.model.config.model_type == "qwen3_vl":  # time, row, column, and again
            owners = [p % 3 if p < 3 * sections[p % 3] else 0 for p in range(len(frequencies))]
        else:
            owners = [axis for axis, size in enumerate(sections) for _ in range(size)]
        for pair, axis in enumerate(owners):
            by_axis[axis, pair] = frequencies[pair]
        return by_axis

    def _coordinates_of(self, positions: torch.Tensor) -> torch.Tensor:
        """Return [3, n]; new tokens go on behind the largest coordinate of the prompt."""
        index = self._rope_index[:, 0]
        length = index.shape[1]
        beyond = (index.max() + 1 + positions - length).expand(3, -1)
        return torch.where(positions < length, index[:, positions.clamp(max=length - 1)], beyond)


class _PictureProcessor(transformers.Qwen2VLProcessor):
    """The processor, which is the same class for pictures in all of these families."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return type(argument)


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer("qwen2")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token="<|im_end|>",  # noqa: S106 - a token of the tokenizer, no secret
        pad_token="<|endoftext|>",  # noqa: S106 - a token of the tokenizer, no secret
        model_input_names=["input_ids", "attention_mask"],
        extra_special_tokens=SPECIAL,
    )


def _save_image_processor(folder: Path, layout: str, *, patch_size: int) -> None:
    block = 2 * patch_size
    limits = {"min_pixels": 20 * block**2, "max_pixels": 60 * block**2}
    processor = Qwen2VLImageProcessorPil(patch_size=patch_size, **limits)
    processor.save_pretrained(folder)
    if layout == "hub":  # older files name the limits, and leave defaults out
        file = folder / "preprocessor_config.json"
        kept = {"patch_size", "merge_size", "temporal_patch_size", "image_processor_type"}
        raw = {k: v for k, v in json.loads(file.read_text()).items() if k in kept}
        file.write_text(json.dumps({**raw, **limits}))


def _lay_out_as_on_the_hub(file: Path, vision: dict[str, Any], rope: dict[str, Any]) -> None:
    """Put the decoder's values at the top, and write the rotary settings the older way."""
    raw = json.loads(file.read_text())
    text = raw.pop("text_config")
    for name in ("model_type", "rope_parameters", "layer_types", "sliding_window"):
        text.pop(name)
    scaling = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    raw |= {**text, "rope_scaling": scaling, "rope_theta": rope["rope_theta"]}
    raw["vision_config"] = {**vision, "model_type": raw["model_type"], "in_chans": 3}
    file.write_text(json.dumps(raw))


def _rename_tensors(file: Path) -> None:
    renamed = {}
    for name, tensor in load_file(file).items():
        old = next((prefix for prefix in OLDER_PREFIXES if name.startswith(prefix)), "")
        renamed[OLDER_PREFIXES.get(old, "") + name.removeprefix(old)] = tensor
    save_file(renamed, file, metadata={"format": "pt"})
