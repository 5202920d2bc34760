"""Train a projector and low-rank adapters so that SmolLM2-135M-Instruct answers about scenes.

Resumable: the state is written every few minutes, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from batches import image_batch
from objectives import DenseHead, dense_loss
from pool import ScenePool, load_pool
from smol_model import SmolSceneModel, answer_loss, word_loss
from smol_questions import QuestionMaker
from torch import distributed, multiprocessing
from train import _average_over_processes

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger("scene_vlm")


@dataclass(frozen=True, slots=True, kw_only=True)
class SmolPlan:
    """Everything that decides the result, besides the code."""

    seed: int
    rank: int
    projector_steps: int
    steps: int
    batch_size: int
    projector_batch_size: int
    places: int
    coarse: int
    learning_rate: float
    projector_learning_rate: float
    warm_up_steps: int = 60
    dense_weight: float = 0.1
    ema_decay: float = 0.995
    first_max_objects: int = 3
    curriculum_tens: float = 0.75
    curriculum_min_steps: int = 60


@dataclass(slots=True, kw_only=True)
class SmolTrainer:
    """Model, dense head, optimiser and the counters that a resumed run needs."""

    plan: SmolPlan
    tower: Path
    pool: ScenePool
    folder: Path
    process: int = 0
    processes: int = 1
    model: SmolSceneModel = field(init=False)
    head: DenseHead = field(init=False)
    maker: QuestionMaker = field(init=False)
    average: dict[str, torch.Tensor] = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    phase: str = "projector"
    step: int = 0
    max_objects: int = 0
    steps_at_level: int = 0
    smoothed: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plan = self.plan
        torch.manual_seed(plan.seed)
        self.model = SmolSceneModel(self.tower, rank=plan.rank, scale=1.0)
        self.head = DenseHead(self.model.decoder.config.hidden_size)
        rng = np.random.default_rng(plan.seed)
        images = image_batch(self.pool, np.arange(64), rng)
        self.model.projector.standardise(self.model.features(images.pixels).flatten(0, 1))
        self.maker = QuestionMaker(self.model.tokenizer, places=plan.places, coarse=plan.coarse)
        self.max_objects = plan.first_max_objects
        self._start_phase("projector")

    def _start_phase(self, phase: str) -> None:
        self.phase, self.step, self.smoothed = phase, 0, {}
        plan = self.plan
        vision = [*self.model.projector.parameters(), *self.head.parameters()]
        peak = plan.projector_learning_rate
        if phase == "whole":
            peak = 0.5 * plan.learning_rate
        groups = [{"params": vision, "peak": peak, "weight_decay": 0.01}]
        if phase == "whole":
            adapters = [item for part in self.model.adapters.values() for item in part.parameters()]
            adapters = [item for item in adapters if item.requires_grad]
            groups.append({"params": adapters, "peak": plan.learning_rate, "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)
        self.average = {name: item.clone() for name, item in self.model.trained_state().items()}

    def run(self, deadline: float) -> None:
        """Train both phases, saving every few minutes; stop early at the deadline (time.time)."""
        saved = time.time()
        stop = False
        while not stop:
            if self.phase == "projector" and self.step >= self.plan.projector_steps:
                if self.process == 0:
                    self.save("projector.pt")
                self._start_phase("whole")
            if self.phase == "whole" and self.step >= self.plan.steps:
                break
            started = time.time()
            figures = self._train_step(late=started > deadline)
            stop = figures.pop("late") > 0
            figures["seconds"] = time.time() - started
            self._record(figures)
            if self.process == 0 and time.time() - saved > 150:
                self.save()
                saved = time.time()
        if self.process == 0:
            self.save()

    def _train_step(self, *, late: bool) -> dict[str, float]:
        plan = self.plan
        whole = self.phase == "whole"
        rng = np.random.default_rng([plan.seed, whole, self.step, self.process])
        scale = self._set_learning_rate()
        size = plan.batch_size if whole else plan.projector_batch_size
        allowed = np.arange(len(self.pool.images))
        if whole:
            counts = self.pool.num_objects
            allowed = np.flatnonzero((counts <= self.max_objects) & (counts > 1))
        images = image_batch(self.pool, rng.choice(allowed, size=size // self.processes), rng)
        visual = self.model.projector(self.model.features(images.pixels))
        loss, figures = dense_loss(self.head, visual, images)
        if whole:
            batch = self.maker.batch(images.objects, rng)
            answers, more = answer_loss(self.model, self.maker.prefix, visual, batch)
            loss = answers + plan.dense_weight * max(0.1, scale) * loss
            figures |= more
        else:
            words = word_loss(self.model, visual, images)
            figures["own_words"] = float(words.detach())
            # The size of the decoder's own embeddings.
            size_loss = (visual.square().mean(-1).sqrt() - self._embedding_size()).square().mean()
            loss = loss + words + 20.0 * size_loss
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

    def _embedding_size(self) -> float:
        return float(self.model.decoder.get_input_embeddings().weight.float().square().mean()) ** 0.5

    def _set_learning_rate(self) -> float:
        total = self.plan.projector_steps if self.phase == "projector" else self.plan.steps
        progress = min(1.0, self.step / total)
        scale = 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * progress))
        warm = min(1.0, (self.step + 1) / self.plan.warm_up_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * scale * warm
        return scale

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.plan.ema_decay, (1 + self.step) / (10 + self.step))
        state = self.model.trained_state()
        torch._foreach_lerp_(
            list(self.average.values()), [state[name] for name in self.average], 1.0 - decay
        )

    def _record(self, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            if not math.isnan(value):
                before = self.smoothed.get(name, value)
                self.smoothed[name] = before + 0.04 * (value - before)
        if self.phase == "whole":
            self.steps_at_level += 1
            ready = self.smoothed.get("x0_tens", 0.0) > self.plan.curriculum_tens
            enough = self.steps_at_level > self.plan.curriculum_min_steps
            if ready and enough and self.max_objects < 8:
                self.max_objects += 1
                self.steps_at_level = 0
        if self.process == 0 and self.step % 20 == 0:
            record = {"phase": self.phase, "step": self.step, "max_objects": self.max_objects}
            record |= {name: round(value, 4) for name, value in self.smoothed.items()}
            with (self.folder / "curve.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
            _log.info("%s", " ".join(f"{name}={value}" for name, value in record.items()))

    def save(self, name: str = "state.pt") -> None:
        """Write the resumable state."""
        state = {
            "counters": (
                self.phase,
                self.step,
                self.max_objects,
                self.steps_at_level,
                self.smoothed,
            ),
            "plan": asdict(self.plan),
            "trained": self.model.trained_state(),
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
        }
        partial = self.folder / "state.partial"
        torch.save(state, partial)
        partial.replace(self.folder / name)

    def resume(self, path: Path) -> None:
        """Go on from a saved state."""
        state = torch.load(path, weights_only=True)
        phase, step, max_objects, steps_at_level, smoothed = state["counters"]
        self.model.load_trained_state(state["trained"])
        self.head.load_state_dict(state["head"])
        self._start_phase(phase)
        peaks = [group["peak"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        # The peaks belong to the plan of this run, not to that of the saved one.
        for group, peak in zip(self.optimizer.param_groups, peaks, strict=True):
            group["peak"] = peak
        self.average = state["average"]
        self.step, self.smoothed = step, smoothed
        self.max_objects, self.steps_at_level = max_objects, steps_at_level


def _options() -> Iterator[tuple[str, type, object, str]]:
    yield "--output", Path, Path("out-smol"), "folder of state, log and curve"
    yield "--pool", Path, None, "folder of the rendered scenes (default: OUTPUT/pool)"
    yield "--tower", Path, Path("feather_edge/assets/scene_vlm"), "checkpoint with a scene tower"
    yield "--num-scenes", int, 24_000, "scenes in the pool"
    yield "--seed", int, 11, "seed of initialisation and batches"
    yield "--rank", int, 32, "rank of the adapters"
    yield "--projector-steps", int, 500, "steps of the first phase"
    yield "--steps", int, 4500, "steps of the second phase"
    yield "--batch-size", int, 4, "images a step, second phase"
    yield "--projector-batch-size", int, 64, "images a step, first phase"
    yield "--places", int, 6, "questions for a place, an image"
    yield "--coarse", int, 8, "other questions, an image"
    yield "--learning-rate", float, 7e-4, "peak of the adapters"
    yield "--projector-learning-rate", float, 2e-3, "peak of the first phase"
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
    (options.output / "rendezvous").unlink(missing_ok=True)
    multiprocessing.spawn(_train, args=(options, deadline), nprocs=options.processes)


def _train(process: int, options: argparse.Namespace, deadline: float) -> None:
    """Train as one of several processes, resuming when there is a state."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{(options.output / 'rendezvous').absolute()}",
        rank=process,
        world_size=options.processes,
    )
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        handlers=[logging.StreamHandler(), logging.FileHandler(options.output / "train.log")],
    )
    names = SmolPlan.__dataclass_fields__
    given = {name: value for name, value in vars(options).items() if name in names}
    trainer = SmolTrainer(
        plan=SmolPlan(**given),
        tower=options.tower,
        pool=load_pool(options.pool, num_scenes=options.num_scenes, workers=1),
        folder=options.output,
        process=process,
        processes=options.processes,
    )
    state = options.output / "state.pt"
    if state.exists():
        trainer.resume(state)
    if process == 0:
        _log.info("%s from %s step %d", trainer.plan, trainer.phase, trainer.step)
    trainer.run(deadline)


if __name__ == "__main__":
    main()
