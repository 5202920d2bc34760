"""Plain text that the decoder must go on predicting as it did before it had adapters.

Text of its own, drawn once and kept on disk: the adapted decoder is held to the distribution that
the untouched one has after every token of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from lora import untouched
from torch.nn import functional

if TYPE_CHECKING:
    from pathlib import Path

    from smol_model import SmolSceneModel
    from transformers import LlamaForCausalLM

LENGTH = 96
_NUM_TEXTS = 96


@torch.inference_mode()
def write_texts(decoder: LlamaForCausalLM, path: Path, *, seed: int) -> None:
    """Draw texts from the decoder, each from another first token.

    Args:
        decoder: what writes.
        path: an .npy file, int64 [96, 96].
        seed: of first tokens and of every draw.
    """
    torch.manual_seed(seed)
    first = torch.randint(decoder.config.vocab_size, (_NUM_TEXTS,))
    # Document boundary, then any token.
    start = torch.stack([torch.zeros_like(first), first], dim=1)
    texts = decoder.generate(
        start,
        attention_mask=torch.ones_like(start),
        do_sample=True,
        top_k=0,
        min_new_tokens=LENGTH - 2,
        max_new_tokens=LENGTH - 2,
    )
    np.save(path, texts.numpy())


def text_loss(model: SmolSceneModel, token_ids: torch.Tensor) -> torch.Tensor:
    """Return the divergence of the adapted decoder from the untouched one on texts [B, L]."""
    with torch.no_grad(), untouched(model.adapters.values()):
        wanted = functional.log_softmax(model.decoder(input_ids=token_ids).logits.float(), -1)
    found = functional.log_softmax(model.decoder(input_ids=token_ids).logits.float(), -1)
    return functional.kl_div(
        found.flatten(0, 1), wanted.flatten(0, 1), log_target=True, reduction="batchmean"
    )
