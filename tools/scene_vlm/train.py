"""Train the scene model on the CPU: first the vision side alone, then the whole model.

Resumable: the state is written every few minutes, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from batches import image_batch, question_batch
from model import ModelShape, build_model, save_checkpoint
from objectives import DenseHead, answer_loss, dense_loss, visual_tokens
from pool import ScenePool, load_pool
from torch import distributed, multiprocessing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import LlavaForConditionalGeneration

_log = logging.getLogger("scene_vlm")

# In phase 2 the vision side is trained already: it learns this much slower than the decoder.
_VISION_SHARE = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """Everything that decides the result, besides the code."""

    seed: int
    vision_steps: int
    steps: int
    batch_size: int
    vision_batch_size: int
    num_questions: int
    learning_rate: float
    vision_learning_rate: float
    warm_up_steps: int = 80
    weight_decay: float = 0.02
    dense_weight: float = 0.5
    ema_decay: float = 0.998
    first_max_objects: int = 3
    curriculum_bins: float = 0.8
    curriculum_min_steps: int = 60


@dataclass(slots=True, kw_only=True)
class Trainer:
    """Model, dense head, optimiser and the counters that a resumed run needs."""

    plan: TrainingPlan
    shape: ModelShape
    pool: ScenePool
    folder: Path
    rank: int = 0
    processes: int = 1
    model: LlavaForConditionalGeneration = field(init=False)
    head: DenseHead = field(init=False)
    average: dict[str, torch.Tensor] = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    phase: str = "vision"
    step: int = 0
    max_objects: int = 0
    steps_at_level: int = 0
    smoothed: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.manual_seed(self.plan.seed)
        self.model = build_model(self.shape)
        self.head = DenseHead(self.shape.width)
        self.max_objects = self.plan.first_max_objects
        self._start_phase("vision")

    def _start_phase(self, phase: str) -> None:
        self.phase, self.step, self.smoothed = phase, 0, {}
        plan = self.plan
        vision = [
            *self.model.model.vision_tower.parameters(),
            *self.model.model.multi_modal_projector.parameters(),
            *self.head.parameters(),
        ]
        known = {id(parameter) for parameter in vision}
        decoder = [item for item in self.model.parameters() if id(item) not in known]
        rate = (
            plan.vision_learning_rate if phase == "vision" else _VISION_SHARE * plan.learning_rate
        )
        groups = [{"params": vision, "peak": rate}]
        if phase == "whole":
            groups.append({"params": decoder, "peak": plan.learning_rate})
        self.optimizer = torch.optim.AdamW(
            groups, lr=rate, betas=(0.9, 0.98), weight_decay=plan.weight_decay, fused=True
        )
        self.average = {name: item.clone() for name, item in self.model.state_dict().items()}

    def run(self, deadline: float) -> None:
        """Train both phases, saving every few minutes; stop early at the deadline (time.time)."""
        saved = time.time()
        stop = False
        while not stop:
            if self.phase == "vision" and self.step >= self.plan.vision_steps:
                self._start_phase("whole")
            if self.phase == "whole" and self.step >= self.plan.steps:
                break
            started = time.time()
            figures = self._train_step(late=started > deadline)
            # Averaged, so that all processes leave at the same step.
            stop = figures.pop("late") > 0
            figures["seconds"] = time.time() - started
            self._record(figures)
            if self.rank == 0 and time.time() - saved > 180:
                self.save()
                saved = time.time()
        if self.rank == 0:
            self.save()

    def _train_step(self, *, late: bool = False) -> dict[str, float]:
        plan = self.plan
        # The stream depends on the step alone, so a resumed run sees what it would have seen.
        rng = np.random.default_rng([plan.seed, self.phase == "whole", self.step, self.rank])
        scale = self._set_learning_rate()
        if self.phase == "vision":
            chosen = rng.integers(
                len(self.pool.images), size=plan.vision_batch_size // self.processes
            )
        else:
            allowed = np.flatnonzero(self.pool.num_objects <= self.max_objects)
            chosen = rng.choice(allowed, size=plan.batch_size // self.processes)
        images = image_batch(self.pool, chosen, rng)
        self.model.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = visual_tokens(self.model, images.pixels)
            loss, figures = dense_loss(self.head, features, images)
            if self.phase == "whole":
                questions = question_batch(images.objects, rng, num_questions=plan.num_questions)
                answers, more = answer_loss(self.model, features, questions)
                loss = answers + plan.dense_weight * max(0.1, scale) * 0.3 * loss
                figures |= more
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [item for group in self.optimizer.param_groups for item in group["params"]]
        figures |= {"loss": float(loss.detach()), "late": float(late)}
        if self.processes > 1:
            figures = _average_over_processes(parameters, figures)
        figures["norm"] = float(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
        self.optimizer.step()
        self._update_average()
        self.step += 1
        return figures

    def _set_learning_rate(self) -> float:
        """Set warm-up and cosine to 2 %, and return the scale in 0..1."""
        total = self.plan.vision_steps if self.phase == "vision" else self.plan.steps
        progress = min(1.0, self.step / total)
        scale = 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * progress))
        warm = min(1.0, (self.step + 1) / self.plan.warm_up_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * scale * warm
        return scale

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.plan.ema_decay, (1 + self.step) / (10 + self.step))
        state = self.model.state_dict()
        names = [name for name, item in state.items() if item.is_floating_point()]
        averages = [self.average[name] for name in names]
        torch._foreach_lerp_(averages, [state[name] for name in names], 1.0 - decay)

    def _record(self, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            if not math.isnan(value):
                before = self.smoothed.get(name, value)
                self.smoothed[name] = before + 0.04 * (value - before)
        if self.phase == "whole":
            self._advance_curriculum()
        if self.rank == 0 and self.step % 25 == 0:
            text = " ".join(f"{name}={value:.3f}" for name, value in self.smoothed.items())
            _log.info("%s %d objects<=%d %s", self.phase, self.step, self.max_objects, text)

    def _advance_curriculum(self) -> None:
        self.steps_at_level += 1
        ready = self.smoothed.get("bins", 0.0) > self.plan.curriculum_bins
        if ready and self.max_objects < 8 and self.steps_at_level > self.plan.curriculum_min_steps:
            self.max_objects += 1
            self.steps_at_level = 0

    def save(self) -> None:
        """Write the resumable state, and the averaged model as a float16 checkpoint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "counters": (
                self.phase,
                self.step,
                self.max_objects,
                self.steps_at_level,
                self.smoothed,
            ),
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
        }
        partial = self.folder / "state.partial"
        torch.save(state, partial)
        partial.replace(self.folder / "state.pt")
        if self.phase == "vision":
            torch.save(state, self.folder / "vision_state.pt")
            return
        trained = self.model.state_dict()
        trained = {name: item.clone() for name, item in trained.items()}
        self.model.load_state_dict(self.average)
        save_checkpoint(self.model, self.folder / "checkpoint")
        self.model.load_state_dict(trained)

    def resume(self, path: Path) -> None:
        """Go on from a saved state."""
        state = torch.load(path, weights_only=True)
        phase, step, max_objects, steps_at_level, smoothed = state["counters"]
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        self._start_phase(phase)
        self.optimizer.load_state_dict(state["optimizer"])
        # The peaks belong to the plan of this run, not to that of the saved one.
        plan = self.plan
        peaks = [plan.vision_learning_rate]
        if phase == "whole":
            peaks = [_VISION_SHARE * plan.learning_rate, plan.learning_rate]
        for group, peak in zip(self.optimizer.param_groups, peaks, strict=True):
            group["peak"] = peak
        self.average = state["average"]
        self.step, self.smoothed = step, smoothed
        self.max_objects, self.steps_at_level = max_objects, steps_at_level


def _average_over_processes(
    parameters: list[torch.nn.Parameter], figures: dict[str, float]
) -> dict[str, float]:
    """Average gradients and figures, in one message."""
    gradients = [item.grad for item in parameters if item.grad is not None]
    parts = [*(gradient.flatten() for gradient in gradients), torch.tensor([*figures.values()])]
    message = torch.cat(parts)
    distributed.all_reduce(message)
    message /= distributed.get_world_size()
    *averaged, values = message.split([part.numel() for part in parts])
    for gradient, mean in zip(gradients, averaged, strict=True):
        gradient.copy_(mean.view_as(gradient))
    return dict(zip(figures, values.tolist(), strict=True))


def _options() -> Iterator[tuple[str, type, object, str]]:
    yield "--output", Path, Path("out"), "folder of state, log and checkpoint"
    yield "--pool", Path, None, "folder of the rendered scenes (default: OUTPUT/pool)"
    yield "--num-scenes", int, 48_000, "scenes in the pool"
    yield "--seed", int, 7, "seed of initialisation and batches"
    yield "--vision-steps", int, 2200, "steps of the first phase"
    yield "--steps", int, 1700, "steps of the second phase"
    yield "--batch-size", int, 32, "images a step, second phase"
    yield "--vision-batch-size", int, 32, "images a step, first phase"
    yield "--num-questions", int, 16, "questions an image"
    yield "--learning-rate", float, 1e-3, "peak of the decoder"
    yield "--vision-learning-rate", float, 2e-3, "peak of the first phase"
    yield "--width", int, 192, "width of the decoder"
    yield "--feed-forward", int, 384, "feed-forward width of the decoder"
    yield "--minutes", float, 600.0, "stop (resumable) after this long"
    yield "--processes", int, 2, "processes that share a step, one thread each"


def main() -> None:
    """Parse options, render the pool, and train in as many processes as asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind, default, help_text in _options():
        parser.add_argument(name, type=kind, default=default, help=help_text)
    options = parser.parse_args()
    options.pool = options.pool or options.output / "pool"
    options.output.mkdir(parents=True, exist_ok=True)
    load_pool(options.pool, num_scenes=options.num_scenes, workers=options.processes)
    deadline = time.time() + 60 * options.minutes
    rendezvous = options.output / "rendezvous"
    rendezvous.unlink(missing_ok=True)
    multiprocessing.spawn(_train, args=(options, deadline), nprocs=options.processes)


def _train(rank: int, options: argparse.Namespace, deadline: float) -> None:
    """Train as one of several processes, resuming when there is a state."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{(options.output / 'rendezvous').absolute()}",
        rank=rank,
        world_size=options.processes,
    )
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        handlers=[logging.StreamHandler(), logging.FileHandler(options.output / "train.log")],
    )
    plan = TrainingPlan(
        seed=options.seed,
        vision_steps=options.vision_steps,
        steps=options.steps,
        batch_size=options.batch_size,
        vision_batch_size=options.vision_batch_size,
        num_questions=options.num_questions,
        learning_rate=options.learning_rate,
        vision_learning_rate=options.vision_learning_rate,
    )
    trainer = Trainer(
        plan=plan,
        shape=ModelShape(width=options.width, feed_forward=options.feed_forward),
        pool=load_pool(options.pool, num_scenes=options.num_scenes, workers=1),
        folder=options.output,
        rank=rank,
        processes=options.processes,
    )
    state = options.output / "state.pt"
    if state.exists():
        trainer.resume(state)
    if rank == 0:
        _log.info("%s %s from %s step %d", plan, trainer.shape, trainer.phase, trainer.step)
    trainer.run(deadline)


if __name__ == "__main__":
    main()
