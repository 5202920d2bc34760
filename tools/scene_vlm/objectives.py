"""What is minimised: answers, and what lies under each patch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from attention import PackedLayout, packed_questions
from batches import FIRST_LOCATION_ID, IGNORED, ImageBatch, QuestionBatch, soft_bins
from torch import nn
from torch.nn import functional
from vocabulary import BOS, NUM_VISUAL_TOKENS, TOKEN_IDS, TOKENS

from feather_edge.evaluate.scenes import COLOURS, NUM_BINS, SHAPES

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

NUM_CLASSES = 1 + len(COLOURS) * len(SHAPES)
_COARSE_WEIGHT = 1.5
_END_WEIGHT = 0.1


class DenseHead(nn.Module):
    """Linear read-out of the projected visual tokens; thrown away after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = (NUM_CLASSES, 1 + len(COLOURS), 1 + len(SHAPES), 4 * NUM_BINS, 1)
        self.norm = nn.RMSNorm(width)
        self.linear = nn.Linear(width, sum(self.sizes))

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return logits [B, 196, n] of class, colour, shape, box bins and centre."""
        return self.linear(self.norm(features)).float().split(self.sizes, dim=-1)


def visual_tokens(model: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Return projected visual tokens [B, 196, D]: the path that `generate` takes."""
    return torch.stack(list(model.get_image_features(pixel_values=pixels).pooler_output))


def dense_loss(
    head: DenseHead, features: torch.Tensor, batch: ImageBatch
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the loss of the dense head and its figures."""
    joint, colour, shape, box, centre = head(features)
    classes = batch.classes
    is_object = classes > 0
    colours = torch.where(is_object, (classes - 1) // len(SHAPES) + 1, classes)
    shapes = torch.where(is_object, (classes - 1) % len(SHAPES) + 1, classes)
    loss = sum(
        functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)
        for logits, wanted in ((joint, classes), (colour, colours), (shape, shapes))
    )
    box = box.unflatten(-1, (4, NUM_BINS))[is_object]
    wanted_boxes = batch.boxes[is_object]
    box_loss = functional.cross_entropy(box.flatten(0, 1), soft_bins(wanted_boxes).flatten(0, 1))
    centre_loss = functional.binary_cross_entropy_with_logits(centre[..., 0], batch.centres)
    with torch.no_grad():
        off = (box.argmax(-1) + 0.5 - wanted_boxes).abs()
        figures = {
            "class": (joint.argmax(-1) == classes)[is_object].float().mean().item(),
            "box": (off < 1.5).all(-1).float().mean().item(),
        }
    return loss + box_loss + 4.0 * centre_loss, figures


def answer_loss(
    model: LlavaForConditionalGeneration, features: torch.Tensor, batch: QuestionBatch
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the loss on answer tokens, coordinates as soft bins, and accuracies."""
    embed = model.get_input_embeddings()
    size, num_questions, length = batch.token_ids.shape
    prefix = embed(torch.full((size, 1), TOKEN_IDS[BOS]))
    text = embed(batch.token_ids.flatten(1))
    layout = PackedLayout(prefix_length=1 + NUM_VISUAL_TOKENS, groups=((num_questions, length),))
    with packed_questions(model.model.language_model.config, layout):
        hidden = model.model.language_model(
            inputs_embeds=torch.cat([prefix, features.to(prefix.dtype), text], dim=1),
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool),
            position_ids=layout.positions()[None],
            use_cache=False,
        ).last_hidden_state
    asked = batch.targets != IGNORED
    hidden = hidden[:, layout.prefix_length :].unflatten(1, (num_questions, length))
    logits = model.lm_head(hidden[asked]).float()
    targets, coordinates, coarse = (
        batch.targets[asked],
        batch.coordinates[asked],
        batch.coarse[asked],
    )
    located = ~coordinates.isnan()
    wanted = functional.one_hot(targets, len(TOKENS)).float()
    last = FIRST_LOCATION_ID + NUM_BINS
    wanted[located, FIRST_LOCATION_ID:last] = soft_bins(coordinates[located])
    weights = torch.where(coarse, _COARSE_WEIGHT, torch.where(located, 1.0, _END_WEIGHT))
    losses = functional.cross_entropy(logits, wanted, reduction="none")
    with torch.no_grad():
        best = logits.argmax(-1)
        off = (best[located] - FIRST_LOCATION_ID + 0.5 - coordinates[located]).abs()
        figures = {
            "bins": (off < 1.5).float().mean().item(),
            "coarse": (best == targets)[coarse].float().mean().item(),
            "loc_loss": losses[located].mean().item(),
            "coarse_loss": losses[coarse].mean().item(),
        }
    return (losses * weights).sum() / weights.sum(), figures
