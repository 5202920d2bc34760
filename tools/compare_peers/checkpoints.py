"""Random checkpoints in published layouts: Qwen2.5-VL and LLaVA, of sizes that CPUs run.

Weights are drawn so that greedy tokens are a fair test of equality: layers, not embeddings, decide
the residual stream, attention is peaked, and the first two logits lie far apart beside what
float32 loses. The vocabulary is that of the shape it stands for; rows that the small tokenizer
does not reach, and those of special tokens, are near zero, so answers neither end early nor leave
it. (llama.cpp makes NaN of rows that are zero.)
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers.trainers import BpeTrainer

from compare_peers.prompts import TEMPLATES

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<image>",
]
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 splits text; llama.cpp knows it by this name and no other way."""
ROPE_THETA = 1e6
PEAKED = 1.5
"""What query and key weights are scaled by, each: then rows attend to few others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """Sizes of a Qwen2 decoder with tied embeddings."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A checkpoint to make.

    Attributes:
        model_type: ``qwen2_5_vl`` or ``llava``.
        decoder: its sizes.
        vision: fields of the vision config.
        image_side: of the square pictures it is asked about, pixels.
    """

    model_type: str
    decoder: Decoder
    vision: dict[str, Any] = field(hash=False)
    image_side: int


QWEN2_HALF_B = Decoder(
    num_layers=24,
    hidden_size=896,
    intermediate_size=4864,
    num_heads=14,
    num_kv_heads=2,
    vocab_size=151936,
)
MODELS = {
    "qwen-0.1b": Model(
        model_type="qwen2_5_vl",
        decoder=Decoder(
            num_layers=12,
            hidden_size=768,
            intermediate_size=2048,
            num_heads=12,
            num_kv_heads=4,
            vocab_size=4096,
        ),
        vision={"depth": 8, "hidden_size": 512, "intermediate_size": 1536, "num_heads": 8},
        image_side=560,
    ),
    "qwen-0.5b": Model(
        model_type="qwen2_5_vl",
        decoder=QWEN2_HALF_B,
        vision={"depth": 12, "hidden_size": 640, "intermediate_size": 1728, "num_heads": 10},
        image_side=560,
    ),
    "llava-0.5b": Model(
        model_type="llava",
        decoder=QWEN2_HALF_B,
        vision={
            "num_hidden_layers": 12,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "image_size": 384,
            "patch_size": 16,
        },
        image_side=384,
    ),
    "llava-7b": Model(
        model_type="llava",
        decoder=Decoder(
            num_layers=32,
            hidden_size=4096,
            intermediate_size=11008,
            num_heads=32,
            num_kv_heads=32,
            vocab_size=32000,
        ),
        vision={
            "num_hidden_layers": 12,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "image_size": 384,
            "patch_size": 16,
        },
        image_side=384,
    ),
}


def write_checkpoint(
    model: Model, folder: Path, text: str, *, dtype: str = "F32", is_sparse: bool = False
) -> None:
    """Write a Hugging Face folder: configs, tokenizer, template and one safetensors file.

    Args:
        model: what to write.
        folder: must not exist.
        text: what the tokenizer is trained on.
        dtype: of the weights, ``F32`` or ``F16``.
        is_sparse: leave all weights zero, as a hole that takes no space on disk.
    """
    folder.mkdir(parents=True)
    tokenizer = _trained_tokenizer(text, limit=model.decoder.vocab_size)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_tokenizer_files(tokenizer, folder)
    ids = {name: tokenizer.token_to_id(name) for name in SPECIAL}
    write = _qwen_configs if model.model_type == "qwen2_5_vl" else _llava_configs
    for name, document in write(model, ids, "float32" if dtype == "F32" else "float16").items():
        (folder / name).write_text(json.dumps(document, indent=2), encoding="utf-8")
    template = TEMPLATES[model.model_type]
    (folder / "chat_template.jinja").write_text(template.jinja, encoding="utf-8")
    shapes = qwen_shapes(model) if model.model_type == "qwen2_5_vl" else llava_shapes(model)
    used = tokenizer.get_vocab_size() - len(SPECIAL)
    _write_tensors(
        folder / "model.safetensors", shapes, dtype=dtype, num_words=None if is_sparse else used
    )


def qwen_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Return the tensors of Qwen2.5-VL by their published names."""
    vision, wide = model.vision["hidden_size"], model.vision["intermediate_size"]
    merged = vision * 4
    shapes: dict[str, tuple[int, ...]] = {"visual.patch_embed.proj.weight": (vision, 3, 2, 14, 14)}
    for layer in range(model.vision["depth"]):
        block = {
            "norm1.weight": (vision,),
            "norm2.weight": (vision,),
            **_dense("attn.qkv", 3 * vision, vision),
            **_dense("attn.proj", vision, vision),
            **_dense("mlp.gate_proj", wide, vision),
            **_dense("mlp.up_proj", wide, vision),
            **_dense("mlp.down_proj", vision, wide),
        }
        shapes |= {f"visual.blocks.{layer}.{name}": shape for name, shape in block.items()}
    shapes |= {
        "visual.merger.ln_q.weight": (vision,),
        **_dense("visual.merger.mlp.0", merged, merged),
        **_dense("visual.merger.mlp.2", model.decoder.hidden_size, merged),
    }
    return shapes | _decoder_shapes(model.decoder, "model")


def llava_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Return the tensors of LLaVA with SigLIP by their published names."""
    vision, wide = model.vision["hidden_size"], model.vision["intermediate_size"]
    patch, side = model.vision["patch_size"], model.vision["image_size"]
    tower = "vision_tower.vision_model"
    shapes: dict[str, tuple[int, ...]] = {
        f"{tower}.embeddings.patch_embedding.weight": (vision, 3, patch, patch),
        f"{tower}.embeddings.patch_embedding.bias": (vision,),
        f"{tower}.embeddings.position_embedding.weight": ((side // patch) ** 2, vision),
    }
    for layer in range(model.vision["num_hidden_layers"]):
        block = {
            **_norm("layer_norm1", vision),
            **_norm("layer_norm2", vision),
            **_dense("mlp.fc1", wide, vision),
            **_dense("mlp.fc2", vision, wide),
        }
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            block |= _dense(f"self_attn.{name}", vision, vision)
        shapes |= {f"{tower}.encoder.layers.{layer}.{name}": each for name, each in block.items()}
    width = model.decoder.hidden_size
    shapes |= {
        **_norm(f"{tower}.post_layernorm", vision),
        **_dense("multi_modal_projector.linear_1", width, vision),
        **_dense("multi_modal_projector.linear_2", width, width),
    }
    return shapes | _decoder_shapes(model.decoder, "language_model.model")


def _decoder_shapes(sizes: Decoder, prefix: str) -> dict[str, tuple[int, ...]]:
    width, wide = sizes.hidden_size, sizes.intermediate_size
    keys = width // sizes.num_heads * sizes.num_kv_heads
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}.embed_tokens.weight": (sizes.vocab_size, width),
        f"{prefix}.norm.weight": (width,),
    }
    for layer in range(sizes.num_layers):
        block = {
            "input_layernorm.weight": (width,),
            "post_attention_layernorm.weight": (width,),
            **_dense("self_attn.q_proj", width, width),
            **_dense("self_attn.k_proj", keys, width),
            **_dense("self_attn.v_proj", keys, width),
            "self_attn.o_proj.weight": (width, width),
            "mlp.gate_proj.weight": (wide, width),
            "mlp.up_proj.weight": (wide, width),
            "mlp.down_proj.weight": (width, wide),
        }
        shapes |= {f"{prefix}.layers.{layer}.{name}": shape for name, shape in block.items()}
    return shapes


def _dense(name: str, out_size: int, in_size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out_size, in_size), f"{name}.bias": (out_size,)}


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _drawn(
    rng: np.random.Generator, name: str, shape: tuple[int, ...], *, num_words: int
) -> NDArray[np.float32]:
    """Return one tensor; see the module's docstring for what the scales are for."""
    noise = rng.standard_normal(shape, np.float32)
    if "norm" in name or "ln_q" in name:
        return noise * np.float32(0.1) + np.float32(name.endswith("weight"))
    if len(shape) == 1:
        return noise * np.float32(0.05)
    if "embed_tokens" in name:
        noise[num_words:] *= 0.02  # special tokens come last, then rows that no token has
        return noise * np.float32(0.05)
    if "position_embedding" in name:
        return noise * np.float32(0.3)
    scale = math.prod(shape[1:]) ** -0.5
    if any(part in name for part in ("q_proj", "k_proj")):
        scale *= PEAKED
    return noise * np.float32(scale)


def _write_tensors(
    path: Path, shapes: dict[str, tuple[int, ...]], *, dtype: str, num_words: int | None
) -> None:
    """Write a safetensors file tensor by tensor; ``num_words`` None leaves all of it a hole."""
    itemsize, end, entries = (4 if dtype == "F32" else 2), 0, {}
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * itemsize
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        if num_words is None:
            file.truncate(8 + len(header) + end)
            return
        rng = np.random.default_rng(0)
        for name, shape in shapes.items():
            values = _drawn(rng, name, shape, num_words=num_words)
            file.write(values.astype(np.float32 if dtype == "F32" else np.float16).tobytes())


def _trained_tokenizer(text: str, *, limit: int) -> Tokenizer:
    """Return a byte-level BPE of at most ``limit`` tokens that splits text as Qwen2 does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre.Sequence(
        [
            pre.Split(Regex(QWEN2_WORDS), behavior="isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=limit - len(SPECIAL),
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    tokenizer.add_special_tokens([AddedToken(each, special=True) for each in SPECIAL])
    return tokenizer


def _write_tokenizer_files(tokenizer: Tokenizer, folder: Path) -> None:
    """Write what is read beside tokenizer.json: its class, and the older pair of files."""
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    added = {
        str(tokenizer.token_to_id(each)): {
            "content": each,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for each in SPECIAL
    }
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": added,
        "additional_special_tokens": SPECIAL[1:],
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "image_token": "<image>",
        "model_max_length": 32768,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def _decoder_config(sizes: Decoder, ids: dict[str, int]) -> dict[str, Any]:
    return {
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "hidden_act": "silu",
        "hidden_size": sizes.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": sizes.intermediate_size,
        "max_position_embeddings": 32768,
        "max_window_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "num_hidden_layers": sizes.num_layers,
        "num_key_value_heads": sizes.num_kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": ROPE_THETA,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": sizes.vocab_size,
    }


def _generation_config(ids: dict[str, int]) -> dict[str, Any]:
    return {
        "do_sample": False,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }


def _qwen_configs(model: Model, ids: dict[str, int], dtype: str) -> dict[str, dict[str, Any]]:
    half = model.decoder.hidden_size // model.decoder.num_heads // 2
    time = half // 4
    depth = model.vision["depth"]
    vision = {
        **model.vision,
        "model_type": "qwen2_5_vl",
        "out_hidden_size": model.decoder.hidden_size,
        "hidden_act": "silu",
        "in_chans": 3,
        "in_channels": 3,
        "patch_size": 14,
        "spatial_patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
        "fullatt_block_indexes": list(range(3, depth, 4)),
    }
    rows = (half - time) // 2
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **_decoder_config(model.decoder, ids),
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|image_pad|>"],
        "rope_scaling": {"type": "mrope", "mrope_section": [time, rows, half - time - rows]},
        "torch_dtype": dtype,
        "vision_config": vision,
    }
    pictures = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    return {
        "config.json": config,
        "generation_config.json": _generation_config(ids),
        "preprocessor_config.json": pictures,
    }


def _llava_configs(model: Model, ids: dict[str, int], dtype: str) -> dict[str, dict[str, Any]]:
    side, patch = model.vision["image_size"], model.vision["patch_size"]
    num_tokens = (side // patch) ** 2
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_seq_length": num_tokens,
        "image_token_index": ids["<image>"],
        "ignore_index": -100,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": True,
        "torch_dtype": dtype,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "text_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            **_decoder_config(model.decoder, ids),
        },
        "vision_config": {
            **model.vision,
            "model_type": "siglip_vision_model",
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "num_channels": 3,
            "vision_use_head": False,
        },
    }
    pictures = {
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": side, "width": side},
    }
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "num_additional_image_tokens": 0,
        "patch_size": patch,
        "vision_feature_select_strategy": "full",
    }
    return {
        "config.json": config,
        "generation_config.json": _generation_config(ids),
        "preprocessor_config.json": pictures,
        "processor_config.json": processor,
    }
