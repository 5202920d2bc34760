"""What is minimised when a pretrained decoder learns to answer about scenes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from attention import PackedLayout, packed_questions
from smol_questions import NUM_VISUAL_TOKENS, OTHER_ROLE, WORD_ROLE, AskedBatch
from torch.nn import functional

from feather_edge.evaluate.scenes import COLOURS, SHAPES

if TYPE_CHECKING:
    import numpy as np
    from batches import ImageBatch
    from smol_model import SmolSceneModel

_NUM_OTHER_TOKENS = 3072
_SHARPNESS = 12.0
_LENGTH_WEIGHT = 20.0


def word_loss(model: SmolSceneModel, visual: torch.Tensor, batch: ImageBatch) -> torch.Tensor:
    """Return how far visual tokens are from the decoder's own words for their object."""
    table = model.decoder.get_input_embeddings().weight
    encode = model.tokenizer
    is_object = batch.classes > 0
    classes = batch.classes[is_object] - 1
    loss = visual.new_zeros(())
    for words, wanted in ((COLOURS, classes // len(SHAPES)), (SHAPES, classes % len(SHAPES))):
        ids = [encode(f" {word}", add_special_tokens=False).input_ids[0] for word in words]
        directions = functional.normalize(table[ids].float(), dim=-1)
        near = functional.normalize(visual[is_object], dim=-1) @ directions.T
        loss = loss + functional.cross_entropy(_SHARPNESS * near, wanted)
    # As long as the decoder's own embeddings.
    length = table.float().square().mean().sqrt()
    off = visual.square().mean(-1).sqrt() - length
    return loss + _LENGTH_WEIGHT * off.square().mean()


def choose_patches(
    centres: torch.Tensor, num_patches: int, rng: np.random.Generator
) -> torch.Tensor:
    """Return num_patches patches of each image [B, K], ascending, every object's centre included.

    Args:
        centres: [B, 196], 1 where an object has its centre.
        num_patches: at least the number of objects.
        rng: draws the others.
    """
    order = torch.from_numpy(rng.random(tuple(centres.shape))) + centres
    return order.topk(num_patches, dim=1).indices.sort(dim=1).values


def answer_loss(
    model: SmolSceneModel, visual: torch.Tensor, batch: AskedBatch, *, patches: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the loss on answers, and accuracies by kind.

    Args:
        model: what answers.
        visual: [B, K, D], visual tokens.
        batch: questions about the B images.
        patches: int64 [B, K], ascending: the patch of every visual token.
    """
    embed = model.decoder.get_input_embeddings()
    start = embed(batch.prefix).expand(len(visual), -1, -1)
    text = embed(batch.token_ids)
    first = len(batch.prefix)
    layout = PackedLayout(prefix_length=first + visual.shape[1], groups=batch.groups)
    # Every question stands where it stands behind the whole image.
    after = layout.text_offsets().expand(len(visual), -1) + first + NUM_VISUAL_TOKENS
    before = torch.arange(first).expand(len(visual), -1)
    with packed_questions(model.decoder.config, layout):
        hidden = model.decoder.model(
            inputs_embeds=torch.cat([start, visual.to(text.dtype), text], dim=1),
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool),
            position_ids=torch.cat([before, first + patches, after], dim=1),
            use_cache=False,
        ).last_hidden_state
    asked = hidden[:, layout.prefix_length :][batch.rows, batch.columns]
    # Every token that may be right, against a fresh share of all others: the rest of the
    # vocabulary has next to no probability, and would cost a tenth of a step.
    others = torch.randint(len(embed.weight), (_NUM_OTHER_TOKENS,))
    table, places = torch.cat([batch.candidates.flatten(), others]).unique(return_inverse=True)
    logits = functional.linear(asked, embed.weight[table]).float()
    candidates = places[: batch.candidates.numel()].view_as(batch.candidates)
    chosen = logits.gather(1, candidates)
    losses = logits.logsumexp(-1) - (batch.shares * chosen).sum(-1)
    entropy = -(batch.shares * batch.shares.clamp_min(1e-9).log()).sum(-1)
    losses = losses - entropy
    with torch.no_grad():
        best = logits.argmax(-1)
        # A digit is right when the bell gives it a fair share.
        share = (batch.shares * (candidates == best[:, None])).sum(-1)
        roles = batch.roles
        figures = {
            "place": losses[roles < WORD_ROLE].mean().item(),
            "x0_tens": (share > 0.25)[roles == 0].float().mean().item(),
            "tens": (share > 0.25)[(roles < WORD_ROLE) & (roles % 2 == 0)].float().mean().item(),
            "units": (share > 0.1)[(roles < WORD_ROLE) & (roles % 2 == 1)].float().mean().item(),
            "words": (share > 0.5)[roles == WORD_ROLE].float().mean().item(),
            "word": losses[roles == WORD_ROLE].mean().item(),
            "other": (share > 0.5)[roles == OTHER_ROLE].float().mean().item(),
        }
    return (losses * batch.weights).sum() / batch.weights.sum(), figures
