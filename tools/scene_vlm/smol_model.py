"""Tower, projector and adapted decoder: what is trained, and the file that ships."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from decoder import find_gguf, load_decoder, load_tokenizer
from lora import adapt
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import CLIPVisionModel, LlamaForCausalLM, PreTrainedTokenizerFast


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
    """A trained vision tower, a projector, and a decoder with adapters."""

    def __init__(
        self,
        *,
        tower: CLIPVisionModel,
        decoder: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerFast,
        rank: int,
        scale: float,
    ) -> None:
        super().__init__()
        self.rank, self.scale, self.tokenizer = rank, scale, tokenizer
        self.tower = tower.eval().requires_grad_(False)
        self.decoder = decoder
        self.adapters = adapt(self.decoder.model, rank=rank, scale=scale)
        self.decoder.requires_grad_(False)
        for parameter in self.adapter_parameters():
            parameter.requires_grad_(True)
        width = self.decoder.config.hidden_size
        self.projector = Projector(self.tower.config.hidden_size, width)

    @classmethod
    def pretrained(cls, tower: Path, *, rank: int, scale: float = 1.0) -> SmolSceneModel:
        """Return the model of a checkpoint's tower and the package's decoder in bfloat16."""
        trained = LlavaForConditionalGeneration.from_pretrained(tower, dtype=torch.float32)
        path = find_gguf()
        return cls(
            tower=trained.model.vision_tower,
            decoder=load_decoder(path).to(torch.bfloat16),
            tokenizer=load_tokenizer(path),
            rank=rank,
            scale=scale,
        )

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Return what training changes in the decoder."""
        return [
            factor for adapter in self.adapters.values() for factor in (adapter.down, adapter.up)
        ]

    @torch.no_grad()
    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return tower features [B, 196, D], as LLaVA's "default" selection takes them."""
        return self.tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]

    def trained_state(self) -> dict[str, torch.Tensor]:
        """Return the tensors that training changes, as views, by name."""
        parts = self.projector.state_dict()
        state = {f"projector.{name}": item for name, item in parts.items()}
        for name, adapter in self.adapters.items():
            state[f"adapter.{name}.down"] = adapter.down.detach()
            state[f"adapter.{name}.up"] = adapter.up.detach()
        return state

    def save_adapter(self, path: Path, state: dict[str, torch.Tensor]) -> None:
        """Write tower, projector and adapters as float16, with what it takes to assemble them."""
        tensors = dict(state)
        for name, item in self.tower.state_dict().items():
            tensors[f"tower.{name}"] = item
        settings = {"rank": self.rank, "scale": self.scale, "vision": self.tower.config.to_dict()}
        half = {
            name: item.detach().to(torch.float16).contiguous() for name, item in tensors.items()
        }
        partial = path.with_suffix(".partial")
        save_file(half, partial, metadata={"format": "pt", "settings": json.dumps(settings)})
        # Weights are written readable by their owner only.
        partial.chmod(0o644)
        partial.replace(path)
