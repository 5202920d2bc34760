"""Random checkpoints in published layouts: Qwen2.5-VL and LLaVA, of sizes that CPUs run.

Weights are drawn so that greedy tokens are a fair test of equality: layers, not embeddings, decide
the residual stream, attention is peaked, and the first two logits lie far apart beside what
float32 loses. The vocabulary is that of the shape it stands for; rows that the small tokenizer
does not reach, and those of special tokens, are small, so answers neither end early nor leave it,
but large beside the epsilon of the first norm: llama.cpp takes 0 for Qwen2-VL's, whatever the
checkpoint says, and gives other tokens, and NaN, where that matters.
"""

from __future__ import annotations

import json
import math
import struct
from typing import TYPE_CHECKING

import numpy as np

from compare_peers.configs import llava_configs, qwen_configs
from compare_peers.models import llava_shapes, qwen_shapes
from compare_peers.prompts import TEMPLATES
from compare_peers.vocabulary import SPECIAL, trained_tokenizer, write_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from compare_peers.models import Model

PEAKED = 1.5
"""What query and key weights are scaled by, each: then rows attend to few others."""


def write_checkpoint(model: Model, folder: Path, text: str) -> None:
    """Write a Hugging Face folder: configs, tokenizer, template and one safetensors file.

    Args:
        model: what to write.
        folder: must not exist.
        text: what the tokenizer is trained on.
    """
    folder.mkdir(parents=True)
    tokenizer = trained_tokenizer(text, limit=model.decoder.vocab_size)
    write_tokenizer(tokenizer, folder, mark=TEMPLATES[model.model_type].mark)
    ids = {name: tokenizer.token_to_id(name) for name in SPECIAL}
    write = qwen_configs if model.model_type == "qwen2_5_vl" else llava_configs
    for name, document in write(model, ids).items():
        (folder / name).write_text(json.dumps(document, indent=2), encoding="utf-8")
    template = TEMPLATES[model.model_type]
    (folder / "chat_template.jinja").write_text(template.jinja, encoding="utf-8")
    shapes = qwen_shapes(model) if model.model_type == "qwen2_5_vl" else llava_shapes(model)
    used = tokenizer.get_vocab_size() - len(SPECIAL)
    _write_tensors(folder / "model.safetensors", shapes, num_words=used)


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
        noise[num_words:] *= 0.3  # special tokens come last, then rows that no token has
        return noise * np.float32(0.05)
    if "position_embedding" in name:
        return noise * np.float32(0.3)
    scale = math.prod(shape[1:]) ** -0.5
    if any(part in name for part in ("q_proj", "k_proj")):
        scale *= PEAKED
    return noise * np.float32(scale)


def _write_tensors(path: Path, shapes: dict[str, tuple[int, ...]], *, num_words: int) -> None:
    """Write a safetensors file of float32, tensor by tensor."""
    end, entries = 0, {}
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * 4
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        rng = np.random.default_rng(0)
        for name, shape in shapes.items():
            values = _drawn(rng, name, shape, num_words=num_words)
            file.write(values.tobytes())
