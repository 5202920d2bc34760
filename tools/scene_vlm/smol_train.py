"""Train a projector and low-rank adapters so that SmolLM2-135M-Instruct answers about scenes.

Resumable: the state is written every few minutes, and the same command goes on from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from assemble import read_adapter
from batches import image_batch
from decoder import find_gguf, load_decoder
from objectives import DenseHead, dense_loss
from smol_model import SmolSceneModel
from smol_objectives import answer_loss, choose_patches, word_loss
from smol_questions import NUM_VISUAL_TOKENS, QuestionMaker
from smol_text import text_loss, write_texts
from training import Plan, Trainer, launch, parse_options

if TYPE_CHECKING:
    import argparse

    from training import Losses, Parameters

_NUM_SPARSE = 48
_TEXTS, _TEXTS_A_STEP, _STEPS_BETWEEN_TEXTS, _TEXT_WEIGHT = "texts.npy", 2, 3, 2.0


class SmolTrainer(Trainer):
    """Trains a projector on a trained tower, and adapters in a frozen decoder."""

    def __init__(
        self,
        *,
        tower: Path,
        rank: int,
        num_places: int,
        num_words: int,
        sparse_steps: int,
        texts: np.ndarray,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.sparse_steps, self.texts = sparse_steps, texts
        torch.manual_seed(self.plan.seed)
        self.model = SmolSceneModel.pretrained(tower, rank=rank)
        self.head = DenseHead(self.model.decoder.config.hidden_size)
        self.maker = QuestionMaker(
            self.model.tokenizer, num_places=num_places, num_words=num_words
        )
        images = image_batch(self.pool, np.arange(64), np.random.default_rng(self.plan.seed))
        self.model.projector.standardise(self.model.features(images.pixels).flatten(0, 1))
        self.start_phase("vision")

    @torch.no_grad()
    def start_from(self, adapter: Path) -> None:
        """Begin the second phase with an adapter file; only the dense head starts afresh."""
        tensors, _ = read_adapter(adapter)
        for name, item in self.result().items():
            item.copy_(tensors[name])
        self.start_phase("whole")

    def vision_parameters(self) -> Parameters:
        """Return projector and dense head."""
        return [*self.model.projector.parameters(), *self.head.parameters()]

    def decoder_parameters(self) -> Parameters:
        """Return the adapters."""
        return self.model.adapter_parameters()

    def losses(self, indices: np.ndarray, rng: np.random.Generator, *, scale: float) -> Losses:
        """Return the dense loss with, by phase, the loss on words or the loss on answers."""
        images = image_batch(self.pool, indices, rng)
        visual = self.model.projector(self.model.features(images.pixels))
        loss, figures = dense_loss(self.head, visual, images)
        if self.phase == "vision":
            return loss + word_loss(self.model, visual, images), figures
        # Few tokens at first: half the time a step, and less to search when search is learnt.
        sparse = self.step < self.sparse_steps
        count = _NUM_SPARSE if sparse else NUM_VISUAL_TOKENS
        patches = choose_patches(images.centres, count, rng)
        shown = visual.gather(1, patches[..., None].expand(-1, -1, visual.shape[-1]))
        batch = self.maker.batch(images.objects, rng)
        answers, more = answer_loss(self.model, shown, batch, patches=patches)
        loss = answers + self.plan.dense_weight * max(0.1, scale) * loss
        if self.step % _STEPS_BETWEEN_TEXTS == 0:
            texts = self.texts[rng.choice(len(self.texts), size=_TEXTS_A_STEP)]
            forgotten = text_loss(self.model, torch.from_numpy(texts))
            more["forgotten"] = float(forgotten.detach())
            loss = loss + _TEXT_WEIGHT * forgotten
        return loss, figures | more

    def result(self) -> dict[str, torch.Tensor]:
        """Return projector and adapters."""
        return self.model.trained_state()

    def modules(self) -> dict[str, torch.nn.Module]:
        """Return the dense head."""
        return {"head": self.head}

    def write_result(self) -> None:
        """Write the averaged adapter file."""
        self.model.save_adapter(self.folder / "adapter.safetensors", self.average)


_OPTIONS = (
    ("--tower", Path, Path("feather_edge/assets/scene_vlm"), "checkpoint with a scene tower"),
    ("--start-from", Path, None, "adapter file to begin the second phase with"),
    ("--num-scenes", int, 24_000, "scenes in the pool"),
    ("--seed", int, 11, "seed of initialisation and batches"),
    ("--rank", int, 32, "rank of the adapters"),
    ("--vision-steps", int, 350, "steps of the first phase"),
    ("--steps", int, 3000, "steps of the second phase"),
    ("--sparse-steps", int, 1500, "steps of the second phase that see 48 of the visual tokens"),
    ("--first-max-objects", int, 4, "objects a scene may have at the start of the second phase"),
    ("--batch-size", int, 4, "images a step, second phase"),
    ("--vision-batch-size", int, 64, "images a step, first phase"),
    ("--num-places", int, 8, "questions for a place, an image"),
    ("--num-words", int, 4, "questions for a word, an image"),
    ("--learning-rate", float, 1e-3, "peak of the adapters"),
    ("--vision-learning-rate", float, 2e-3, "peak of the first phase"),
)


def build(options: argparse.Namespace, **common: Any) -> SmolTrainer:
    """Return the trainer of one process."""
    plan = Plan.of(
        options,
        vision_share=0.5,
        warm_up_steps=60,
        weight_decay=0.0,
        dense_weight=0.1,
        ema_decay=0.995,
        first_max_objects=options.first_max_objects,
        curriculum_figure="x0_tens",
        curriculum_level=0.65,
        curriculum_min_steps=30,
    )
    trainer = SmolTrainer(
        tower=options.tower,
        rank=options.rank,
        num_places=options.num_places,
        num_words=options.num_words,
        sparse_steps=options.sparse_steps,
        texts=np.load(options.output / _TEXTS),
        plan=plan,
        **common,
    )
    if options.start_from is not None:
        trainer.start_from(options.start_from)
    return trainer


def main() -> None:
    """Parse options, draw the texts, and train."""
    options = parse_options(__doc__, _OPTIONS)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / _TEXTS
    if not path.exists():
        write_texts(load_decoder(find_gguf()), path, seed=options.seed)
    launch(options, build)


if __name__ == "__main__":
    main()
