"""Tower, projector and adapted decoder: the parts that are trained, and their losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from attention import packed_questions
from decoder import find_gguf, load_decoder, load_tokenizer
from lora import adapt
from smol_questions import OTHER_ROLE, WORD_ROLE, AskedBatch
from torch import nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from feather_edge.evaluate.scenes import COLOURS, SHAPES

if TYPE_CHECKING:
    from pathlib import Path

    from batches import ImageBatch
    from transformers import PreTrainedTokenizerFast

IGNORED = -100


class Projector(nn.Module):
    """The projector of LLaVA: two linear layers with GELU between."""

    def __init__(self, vision_width: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision_width, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return visual tokens."""
        return self.linear_2(functional.gelu(self.linear_1(features)))

    @torch.no_grad()
    def standardise(self, features: torch.Tensor) -> None:
        """Fold the mean and deviation of features [n, D] into the first layer."""
        mean, deviation = features.mean(0), features.std(0)
        weight = torch.randn_like(self.linear_1.weight) / features.shape[1] ** 0.5
        self.linear_1.weight.copy_(weight / deviation)
        self.linear_1.bias.copy_(-(self.linear_1.weight @ mean))


class SmolSceneModel(nn.Module):
    """The trained scene tower, a projector, and the adapted decoder in bfloat16."""

    def __init__(self, tower: Path, *, rank: int, scale: float) -> None:
        super().__init__()
        trained = LlavaForConditionalGeneration.from_pretrained(tower, dtype=torch.float32)
        self.tower = trained.model.vision_tower.eval().requires_grad_(False)
        path = find_gguf()
        self.decoder = load_decoder(path).to(torch.bfloat16)
        self.tokenizer: PreTrainedTokenizerFast = load_tokenizer(path)
        self.adapters = adapt(self.decoder.model, rank=rank, scale=scale)
        self.decoder.requires_grad_(False)
        for adapter in self.adapters.values():
            adapter.down.requires_grad_(True)
            adapter.up.requires_grad_(True)
        width = self.decoder.config.hidden_size
        self.projector = Projector(self.tower.config.hidden_size, width)

    @torch.no_grad()
    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return tower features [B, 196, D], as LLaVA's "default" selection takes them."""
        return self.tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]

    def trained_state(self) -> dict[str, torch.Tensor]:
        """Return the tensors that training changes, by name."""
        state = {f"projector.{name}": item for name, item in self.projector.state_dict().items()}
        for name, adapter in self.adapters.items():
            state[f"adapter.{name}.down"] = adapter.down.detach()
            state[f"adapter.{name}.up"] = adapter.up.detach()
        return state

    @torch.no_grad()
    def load_trained_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take over tensors that `trained_state` gave."""
        own = self.trained_state()
        for name, item in own.items():
            item.copy_(state[name])


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
        loss = loss + functional.cross_entropy(12.0 * near, wanted)
    return loss


def answer_loss(
    model: SmolSceneModel, prefix: list[int], visual: torch.Tensor, batch: AskedBatch
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the loss on answers, and accuracies by kind."""
    embed = model.decoder.get_input_embeddings()
    start = embed(torch.tensor(prefix)).expand(len(visual), -1, -1)
    text = embed(batch.token_ids)
    with packed_questions(model.decoder.config, batch.layout):
        hidden = model.decoder.model(
            inputs_embeds=torch.cat([start, visual.to(text.dtype), text], dim=1),
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool),
            position_ids=batch.layout.positions()[None],
            use_cache=False,
        ).last_hidden_state
    asked = hidden[:, batch.layout.prefix_length :][batch.rows, batch.columns]
    logits = model.decoder.lm_head(asked).float()
    chosen = logits.gather(1, batch.candidates)
    losses = logits.logsumexp(-1) - (batch.shares * chosen).sum(-1)
    entropy = -(batch.shares * batch.shares.clamp_min(1e-9).log()).sum(-1)
    losses = losses - entropy
    with torch.no_grad():
        best = logits.argmax(-1)
        # A digit is right when the bell gives it a fair share.
        share = (batch.shares * (batch.candidates == best[:, None])).sum(-1)
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
