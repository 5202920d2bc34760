"""The training loop that both recipes share: phases, processes, moving average, resumption.

Batches depend on seed, phase, step and process alone, so a resumed run sees what it would have
seen.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import signal
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pool import ScenePool, load_pool
from torch import distributed, multiprocessing

from feather_edge.evaluate.scenes import MAX_OBJECTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Option = tuple[str, type, object, str]
    Parameters = list[torch.nn.Parameter]
    Losses = tuple[torch.Tensor, dict[str, float]]

_log = logging.getLogger("scene_vlm")

SECONDS_BETWEEN_SAVES = 180
STEPS_BETWEEN_RECORDS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What decides the result of either recipe, besides the code.

    Attributes:
        seed: of initialisation and batches.
        vision_steps: steps of the first phase, which trains what the decoder is given to read.
        steps: steps of the second phase, which trains on answers.
        batch_size: images a step in the second phase, over all processes.
        vision_batch_size: the same in the first phase.
        learning_rate: peak of the decoder's part in the second phase.
        vision_learning_rate: peak of the first phase.
        vision_share: peak of the vision side in the second phase, relative to the decoder's.
        warm_up_steps: at the start of each phase.
        weight_decay: of all parameters.
        dense_weight: weight of the dense loss in the second phase; it falls with the rate.
        ema_decay: of the moving average that is saved as the result.
        first_max_objects: objects a scene may have at the start of the second phase.
        curriculum_figure: one more object is allowed each time this figure ...
        curriculum_level: ... passes this level ...
        curriculum_min_steps: ... after this many steps.
    """

    seed: int
    vision_steps: int
    steps: int
    batch_size: int
    vision_batch_size: int
    learning_rate: float
    vision_learning_rate: float
    vision_share: float
    warm_up_steps: int
    weight_decay: float
    dense_weight: float
    ema_decay: float
    first_max_objects: int
    curriculum_figure: str
    curriculum_level: float
    curriculum_min_steps: int = 60

    @classmethod
    def of(cls, options: argparse.Namespace, **fixed: Any) -> Plan:
        """Return the plan of a recipe: what its options leave open and what it has ``fixed``."""
        asked = (
            "seed", "vision_steps", "steps", "batch_size", "vision_batch_size", "learning_rate",
            "vision_learning_rate",
        )  # fmt: skip
        return cls(**{name: getattr(options, name) for name in asked}, **fixed)


class Trainer(ABC):
    """Runs the phases "vision" and "whole"; a recipe says what is trained and on what loss.

    A recipe builds its modules and then calls `start_phase`.
    """

    plan: Plan
    pool: ScenePool
    folder: Path
    process: int
    processes: int
    average: dict[str, torch.Tensor]
    optimizer: torch.optim.Optimizer

    def __init__(
        self, *, plan: Plan, pool: ScenePool, folder: Path, process: int, processes: int
    ) -> None:
        self.plan, self.pool, self.folder = plan, pool, folder
        self.process, self.processes = process, processes
        self.max_objects, self.steps_at_level = plan.first_max_objects, 0
        self.phase, self.step = "vision", 0
        self.smoothed: dict[str, float] = {}
        self.stop_signals: list[bool] = []

    @abstractmethod
    def vision_parameters(self) -> Parameters:
        """Return what both phases train, the dense head included."""

    @abstractmethod
    def decoder_parameters(self) -> Parameters:
        """Return what the second phase trains besides."""

    @abstractmethod
    def losses(self, indices: np.ndarray, rng: np.random.Generator, *, scale: float) -> Losses:
        """Return the loss on scenes of the pool and figures; scale is the rate's, in 0..1."""

    @abstractmethod
    def result(self) -> dict[str, torch.Tensor]:
        """Return the tensors that are trained and kept, as views."""

    @abstractmethod
    def modules(self) -> dict[str, torch.nn.Module]:
        """Return modules that training needs and the result does not."""

    @abstractmethod
    def write_result(self) -> None:
        """Write the moving average in the form that ships."""

    def start_phase(self, phase: str) -> None:
        """Begin a phase with a fresh optimiser and moving average."""
        plan = self.plan
        self.phase, self.step, self.smoothed = phase, 0, {}
        peak = plan.vision_learning_rate
        groups = [{"params": self.vision_parameters(), "peak": peak}]
        if phase == "whole":
            groups[0]["peak"] = plan.vision_share * plan.learning_rate
            groups.append({"params": self.decoder_parameters(), "peak": plan.learning_rate})
        self.optimizer = torch.optim.AdamW(
            groups, lr=peak, betas=(0.9, 0.98), weight_decay=plan.weight_decay, fused=True
        )
        self.average = {name: item.detach().clone() for name, item in self.result().items()}

    def run(self, deadline: float) -> None:
        """Train both phases, saving every few minutes.

        Stops early, with a last save, at the deadline (time.time) or on SIGTERM to any process.
        """
        saved = time.time()
        stop = False
        signal.signal(signal.SIGTERM, lambda *_: self.stop_signals.append(True))
        while not stop:
            if self.phase == "vision" and self.step >= self.plan.vision_steps:
                self.save("vision_state.pt")
                self.start_phase("whole")
            if self.phase == "whole" and self.step >= self.plan.steps:
                break
            started = time.time()
            late = started > deadline or bool(self.stop_signals)
            figures = self._train_step(late=late)
            # Averaged, so that all processes leave at the same step.
            stop = figures.pop("late") > 0
            figures["seconds"] = time.time() - started
            self._record(figures)
            if time.time() - saved > SECONDS_BETWEEN_SAVES:
                self.save()
                saved = time.time()
        self.save()

    def _train_step(self, *, late: bool) -> dict[str, float]:
        plan = self.plan
        whole = self.phase == "whole"
        rng = np.random.default_rng([plan.seed, whole, self.step, self.process])
        torch.manual_seed(int(rng.integers(2**31)))
        scale = self._set_learning_rate()
        most = self.max_objects if whole else MAX_OBJECTS
        allowed = np.flatnonzero(self.pool.num_objects <= most)
        size = plan.batch_size if whole else plan.vision_batch_size
        loss, figures = self.losses(
            rng.choice(allowed, size=size // self.processes), rng, scale=scale
        )
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
        now = self.result()
        names = [name for name, item in now.items() if item.is_floating_point()]
        averages = [self.average[name] for name in names]
        torch._foreach_lerp_(averages, [now[name] for name in names], 1.0 - decay)

    def _record(self, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            if not math.isnan(value):
                before = self.smoothed.get(name, value)
                self.smoothed[name] = before + 0.04 * (value - before)
        if self.phase == "whole":
            self._advance_curriculum()
        if self.process == 0 and self.step % STEPS_BETWEEN_RECORDS == 0:
            record = {"phase": self.phase, "step": self.step, "max_objects": self.max_objects}
            record |= {name: round(value, 4) for name, value in self.smoothed.items()}
            with (self.folder / "curve.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
            _log.info("%s", " ".join(f"{name}={value}" for name, value in record.items()))

    def _advance_curriculum(self) -> None:
        plan = self.plan
        self.steps_at_level += 1
        ready = self.smoothed.get(plan.curriculum_figure, 0.0) > plan.curriculum_level
        enough = self.steps_at_level > plan.curriculum_min_steps
        if ready and enough and self.max_objects < MAX_OBJECTS:
            self.max_objects += 1
            self.steps_at_level = 0

    def save(self, name: str = "state.pt") -> None:
        """Write the resumable state, and after the first phase the result."""
        if self.process:
            return
        counters = (
            self.phase,
            self.step,
            self.max_objects,
            self.steps_at_level,
            self.smoothed,
        )
        state = {
            "counters": counters,
            "plan": asdict(self.plan),
            "trained": self.result(),
            "modules": {part: item.state_dict() for part, item in self.modules().items()},
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
        }
        partial = self.folder / "state.partial"
        torch.save(state, partial)
        partial.replace(self.folder / name)
        if self.phase == "whole":
            self.write_result()

    @torch.no_grad()
    def resume(self, path: Path) -> None:
        """Go on from a saved state."""
        state = torch.load(path, weights_only=True)
        phase, step, max_objects, steps_at_level, smoothed = state["counters"]
        for name, item in self.result().items():
            item.copy_(state["trained"][name])
        for part, module in self.modules().items():
            module.load_state_dict(state["modules"][part])
        self.start_phase(phase)
        # The peaks belong to the plan of this run, not to that of the saved one.
        peaks = [group["peak"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, peak in zip(self.optimizer.param_groups, peaks, strict=True):
            group["peak"] = peak
        self.average = state["average"]
        self.step, self.smoothed = step, smoothed
        self.max_objects = max(max_objects, self.plan.first_max_objects)
        self.steps_at_level = steps_at_level


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


_OPTIONS: tuple[Option, ...] = (
    ("--output", Path, Path("out"), "folder of state, log, curve and result"),
    ("--pool", Path, None, "folder of the rendered scenes (default: OUTPUT/pool)"),
    ("--minutes", float, 600.0, "stop (resumable) after this long"),
    ("--processes", int, 2, "processes that share a step, one thread each"),
)


def parse_options(description: str | None, options: Iterable[Option]) -> argparse.Namespace:
    """Return the options of a recipe and those that every recipe has."""
    parser = argparse.ArgumentParser(description=description)
    for name, kind, default, help_text in (*_OPTIONS, *options):
        parser.add_argument(name, type=kind, default=default, help=help_text)
    parsed = parser.parse_args()
    parsed.pool = parsed.pool or parsed.output / "pool"
    return parsed


def launch(options: argparse.Namespace, build: Callable[..., Trainer]) -> None:
    """Render the pool, and train in as many processes as asked for.

    Args:
        options: what `parse_options` gave, with num_scenes among them.
        build: called in each process with the options and the keywords pool, folder, process and
            processes; a function of a module.
    """
    options.output.mkdir(parents=True, exist_ok=True)
    load_pool(options.pool, num_scenes=options.num_scenes, workers=options.processes)
    deadline = time.time() + 60 * options.minutes
    (options.output / "rendezvous").unlink(missing_ok=True)
    multiprocessing.spawn(_train, args=(options, deadline, build), nprocs=options.processes)


def _train(process: int, options: Any, deadline: float, build: Callable[..., Trainer]) -> None:
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
    pool = load_pool(options.pool, num_scenes=options.num_scenes, workers=1)
    trainer = build(
        options, pool=pool, folder=options.output, process=process, processes=options.processes
    )
    state = options.output / "state.pt"
    if state.exists():
        trainer.resume(state)
    if process == 0:
        _log.info("%s from %s step %d", trainer.plan, trainer.phase, trainer.step)
    trainer.run(deadline)
