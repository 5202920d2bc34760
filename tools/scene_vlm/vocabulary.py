"""Vocabulary, tokenizer and processor of the scene model: a token per word and coordinate bin."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from feather_edge.evaluate.scenes import (
    COLOURS,
    IMAGE_SIZE_PX,
    LOCATION_TOKENS,
    MAX_COUNT,
    NUM_PATCHES_PER_SIDE,
    PATCH_SIZE_PX,
    SHAPES,
)

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

NUM_VISUAL_TOKENS = NUM_PATCHES_PER_SIDE**2
# Positions of the longest question with its answer: "where is the red circle ?", <assistant>, box.
QUESTION_LENGTH = 11

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
IMAGE, ASSISTANT = "<image>", "<assistant>"
SPECIAL_TOKENS = (PAD, BOS, EOS, UNKNOWN, IMAGE, ASSISTANT)
QUESTION_WORDS = (
    *("where", "is", "the", "what", "colour", "shape", "there", "a", "how", "many", "are"),
    *("object", "objects", "?", "yes", "no"),
)
WORDS = (
    *QUESTION_WORDS,
    *COLOURS,
    *SHAPES,
    *("circles", "squares", "triangles", "stars", "crosses"),
    *(str(count) for count in range(MAX_COUNT + 1)),
)
TOKENS = (*SPECIAL_TOKENS, *LOCATION_TOKENS, *WORDS)
TOKEN_IDS = {token: index for index, token in enumerate(TOKENS)}

# The image may come before or after the text; "content" may be a plain string as well.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<assistant>' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def encode(text: str) -> list[int]:
    """Return the token ids of space-separated text, as the shipped tokenizer does.

    Raises:
        KeyError: a word is not in the vocabulary.
    """
    return [TOKEN_IDS[word] for word in text.split()]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the word-level tokenizer: lower-cased words, punctuation apart, nothing implicit."""
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(vocab=dict(TOKEN_IDS), unk_token=UNKNOWN))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True
    )
    core.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL_TOKENS])
    # Location tokens are answers: not "special", or skip_special_tokens would drop them.
    core.add_tokens([AddedToken(token, normalized=False) for token in LOCATION_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=[IMAGE, ASSISTANT],
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def build_image_processor() -> CLIPImageProcessorPil:
    """Return the CLIP image settings for 112 x 112 px."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE_PX},
        crop_size={"height": IMAGE_SIZE_PX, "width": IMAGE_SIZE_PX},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    )


def build_processor() -> LlavaProcessor:
    """Return the processor: image settings and the word-level tokenizer."""
    from transformers import LlavaProcessor

    return LlavaProcessor(
        image_processor=build_image_processor(),
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE_PX,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def save_processor(processor: LlavaProcessor, folder: Path) -> None:
    """Write the processor, and its image settings once more in a file of their own."""
    processor.save_pretrained(folder)
    # One file per part beside processor_config.json: the form that every release can read.
    settings = processor.image_processor.to_dict()
    settings["image_processor_type"] = "CLIPImageProcessor"
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")
