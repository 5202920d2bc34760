"""Train the scene model on the CPU: first the vision side alone, then the whole model.

Resumable: the state is written every few minutes, and the same command goes on from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from batches import image_batch, question_batch
from model import ModelShape, build_model, save_checkpoint
from objectives import DenseHead, answer_loss, dense_loss, visual_tokens
from training import Plan, Trainer, launch, parse_options

if TYPE_CHECKING:
    import argparse

    import numpy as np
    from training import Losses, Parameters


class SceneTrainer(Trainer):
    """Trains every weight of the scene model."""

    def __init__(self, *, shape: ModelShape, num_questions: int, **common: Any) -> None:
        super().__init__(**common)
        self.num_questions = num_questions
        torch.manual_seed(self.plan.seed)
        self.model = build_model(shape)
        self.head = DenseHead(shape.width)
        self.start_phase("vision")

    def vision_parameters(self) -> Parameters:
        """Return tower, projector and dense head."""
        parts = (self.model.model.vision_tower, self.model.model.multi_modal_projector, self.head)
        return [parameter for part in parts for parameter in part.parameters()]

    def decoder_parameters(self) -> Parameters:
        """Return everything else."""
        known = {id(parameter) for parameter in self.vision_parameters()}
        return [item for item in self.model.parameters() if id(item) not in known]

    def losses(self, indices: np.ndarray, rng: np.random.Generator, *, scale: float) -> Losses:
        """Return the dense loss, in the second phase with the loss on answers."""
        images = image_batch(self.pool, indices, rng)
        self.model.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = visual_tokens(self.model, images.pixels)
            loss, figures = dense_loss(self.head, features, images)
            if self.phase == "whole":
                questions = question_batch(images.objects, rng, num_questions=self.num_questions)
                answers, more = answer_loss(self.model, features, questions)
                loss = answers + self.plan.dense_weight * max(0.1, scale) * loss
                figures |= more
        return loss, figures

    def result(self) -> dict[str, torch.Tensor]:
        """Return all weights."""
        return self.model.state_dict()

    def modules(self) -> dict[str, torch.nn.Module]:
        """Return the dense head."""
        return {"head": self.head}

    def write_result(self) -> None:
        """Write the averaged model as a float16 checkpoint."""
        trained = {name: item.clone() for name, item in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        save_checkpoint(self.model, self.folder / "checkpoint")
        self.model.load_state_dict(trained)


_OPTIONS = (
    ("--num-scenes", int, 48_000, "scenes in the pool"),
    ("--seed", int, 7, "seed of initialisation and batches"),
    ("--vision-steps", int, 2200, "steps of the first phase"),
    ("--steps", int, 1700, "steps of the second phase"),
    ("--batch-size", int, 32, "images a step, second phase"),
    ("--vision-batch-size", int, 32, "images a step, first phase"),
    ("--num-questions", int, 16, "questions an image"),
    ("--learning-rate", float, 1e-3, "peak of the decoder"),
    ("--vision-learning-rate", float, 2e-3, "peak of the first phase"),
    ("--width", int, 192, "width of the decoder"),
    ("--feed-forward", int, 384, "feed-forward width of the decoder"),
)


def build(options: argparse.Namespace, **common: Any) -> SceneTrainer:
    """Return the trainer of one process."""
    plan = Plan.of(
        options,
        # The vision side is trained already: it learns this much slower than the decoder.
        vision_share=0.4,
        warm_up_steps=80,
        weight_decay=0.02,
        dense_weight=0.15,
        ema_decay=0.998,
        first_max_objects=3,
        curriculum_figure="bins",
        curriculum_level=0.8,
    )
    shape = ModelShape(width=options.width, feed_forward=options.feed_forward)
    return SceneTrainer(shape=shape, num_questions=options.num_questions, plan=plan, **common)


if __name__ == "__main__":
    launch(parse_options(__doc__, _OPTIONS), build)
