"""Which bundles of the pretrained decoder are asked what, and their answers about scenes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from feather_edge.bundle import Bundle
from feather_edge.evaluate.comparison import UNPRUNED, Comparison
from feather_edge.evaluate.evaluation import gather
from feather_edge.evaluate.records import read_records
from feather_edge.evaluate.summary import summarise
from feather_edge.evaluate.tasks import load_task
from feather_edge.export.pipeline import export
from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from feather_edge.evaluate.evaluation import Gathered
    from feather_edge.evaluate.records import Record
    from feather_edge.evaluate.summary import Evaluation
    from feather_edge.evaluate.tasks import Task
    from feather_edge.recipes import Precision

    Key = tuple[str, float]
    """Method and keep ratio."""

CHUNK = 25
"""Scenes that every run answers before any run goes on to the next ones."""
BOX_FORMAT = "0-100"
PAPER_LOCALISATION, PAPER_GQA = 53.2, 63.3
"""Of the paper's unpruned model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A row of the paper's Tables 1, A2 and A3.

    Attributes:
        saved: per cent of the FLOPs.
        localisation: mean of its four data sets.
        gqa: accuracy on GQA; None where the paper has none.
    """

    saved: int
    localisation: float
    gqa: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One bundle and what is asked of it.

    Attributes:
        where: the place and manner of pruning, in words.
        recipe: how the bundle is exported.
        comparison: methods and keep ratios.
        asks_unpruned: whether it asks the unpruned model too. Its answers do not depend on where
            the decoder is split, so one run of each precision does.
        paper: the paper's row of a method and keep ratio, where it has one.
        float_run: of a quantised bundle, the run whose bundle has the same stages in float32.
    """

    where: str
    recipe: ExportRecipe
    comparison: Comparison
    asks_unpruned: bool = False
    paper: Mapping[Key, Published] = field(default_factory=dict)
    float_run: str | None = None

    @property
    def precision(self) -> str:
        """Of the decoder."""
        return self.recipe.precision


def _single(layer: int, paper: dict[Key, Published]) -> Run:
    # Without a grid, `feather` is the RoPE-free score alone.
    return Run(
        where=f"before {layer}",
        recipe=ExportRecipe(stages=(layer,), stride=0, opset="23"),
        comparison=Comparison(
            methods=("feather", "fastv", "fastv-full", "uniform", "random"),
            keep_ratios=(0.25,),
        ),
        paper=paper,
    )


_FLOAT_RUNS = {
    "feather": Run(
        where="before 8 and 16, union with the grid",
        recipe=ExportRecipe(stages=(8, 16), selection="union", opset="23"),
        comparison=Comparison(methods=("feather",), keep_ratios=(0.3, 0.6), budget="own"),
        asks_unpruned=True,
        paper={
            ("feather", 0.3): Published(saved=64, localisation=39.3, gqa=61.8),
            ("feather", 0.6): Published(saved=48, localisation=49.7, gqa=63.2),
        },
    ),
    "layer-3": _single(
        3,
        {
            ("fastv", 0.25): Published(saved=68, localisation=5.9, gqa=58.4),
            ("feather", 0.25): Published(saved=68, localisation=16.7),
            ("uniform", 0.25): Published(saved=66, localisation=28.0),
        },
    ),
    "layer-8": _single(
        8,
        {
            ("fastv", 0.25): Published(saved=56, localisation=23.3),
            ("feather", 0.25): Published(saved=56, localisation=27.3),
            ("uniform", 0.25): Published(saved=55, localisation=30.3),
        },
    ),
    "equal": Run(
        where="at the cost of FEATHER",
        recipe=ExportRecipe(stages=(8, 16), opset="23"),
        comparison=Comparison(methods=("pre-divprune", "uniform"), keep_ratios=(0.3, 0.6)),
    ),
    "pyramiddrop": Run(
        where="before 8, 15 and 22, powers of the ratio",
        recipe=ExportRecipe(
            stages=(8, 15, 22), prune="pyramiddrop", keep_ratio=(0.5, 0.25, 0.125), opset="23"
        ),
        comparison=Comparison(methods=("pyramiddrop",), keep_ratios=(0.3, 0.6)),
        paper={
            ("pyramiddrop", 0.3): Published(saved=65, localisation=28.9, gqa=61.2),
            ("pyramiddrop", 0.6): Published(saved=46, localisation=46.6, gqa=63.1),
        },
    ),
}


def _quantised(name: str, precision: Precision) -> Run:
    run = _FLOAT_RUNS[name]
    return dataclasses.replace(
        run,
        # The vision encoder stays as it is, so that only the decoder differs.
        recipe=msgspec.structs.replace(run.recipe, precision=precision, vision_precision="fp32"),
        paper={},
        float_run=name,
    )


RUNS = _FLOAT_RUNS | {
    f"{name}-{precision}": _quantised(name, precision)
    for precision in ("int8", "int4")
    for name in _FLOAT_RUNS
}


def asked(split: str, limit: int | None) -> Task:
    """Return a task with two questions a scene: for a place, and one other, each kind in turn."""
    task = load_task("scenes", split=split, limit=limit)
    samples = []
    for index, sample in enumerate(task.samples):
        places = [question for question in sample.questions if question.box is not None]
        words = [question for question in sample.questions if question.box is None]
        questions = (*places, words[index % len(words)])
        samples.append(dataclasses.replace(sample, questions=questions))
    return dataclasses.replace(task, digest=f"{task.digest}-two", samples=tuple(samples))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The bundles of all runs, and their answers to a task.

    Attributes:
        checkpoint: folder written by ``assemble.py``.
        output: folder of bundles and answers.
        task: what ``asked`` returned.
    """

    checkpoint: Path
    output: Path
    task: Task

    @property
    def folder(self) -> Path:
        """Of the answers to this task."""
        return self.output / self.task.digest.removesuffix("-two")

    def bundle(self, name: str) -> Path:
        """Return the bundle of a run, exported where it is missing."""
        folder = self.output / "bundles" / name
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            export(self.checkpoint, folder, RUNS[name].recipe)
        return folder

    def ask(self, names: Iterable[str]) -> Iterator[tuple[str, int]]:
        """Ask what has no answer yet; yields run and scenes after each share of them.

        All runs answer a chunk of scenes before the next one begins, so that they can be
        compared at any time.
        """
        names = tuple(names)
        for end in range(CHUNK, len(self.task.samples) + CHUNK, CHUNK):
            chunk = self._first(end)
            for name in names:
                self._gather(name, chunk)
                yield name, min(end, len(self.task.samples))

    def num_complete(self, names: Iterable[str]) -> int:
        """Return how many scenes, from the first, all of some runs have answered."""
        return min(self._num_complete(name) for name in names)

    def evaluations(self, names: Iterable[str], num_scenes: int) -> dict[str, Evaluation]:
        """Return the outcome of some runs on the first scenes, the unpruned row first."""
        task = self._first(num_scenes)
        found = {}
        for name in names:
            gathered = self._gather(name, task)
            full = gathered if UNPRUNED in gathered.keys else self._gather(_unpruned(name), task)
            found[name] = _summarise(gathered, full, task)
        return found

    def records(self, name: str, num_scenes: int) -> tuple[Record, ...]:
        """Return a run's answers about the first scenes."""
        return self._gather(name, self._first(num_scenes)).records

    def _first(self, num_scenes: int) -> Task:
        return dataclasses.replace(self.task, samples=self.task.samples[:num_scenes])

    def _gather(self, name: str, task: Task) -> Gathered:
        run = RUNS[name]
        return gather(
            self.bundle(name),
            task,
            run.comparison,
            output=self.folder / name,
            box_format=BOX_FORMAT,
            is_unpruned_asked=run.asks_unpruned,
        )

    def _num_complete(self, name: str) -> int:
        run = RUNS[name]
        there = {record.trial for record in read_records(self.folder / name)}
        keys = set(run.comparison.prunings(Bundle.open(self.bundle(name))))
        if not run.asks_unpruned:
            keys.remove(UNPRUNED)
        for count, sample in enumerate(self.task.samples):
            numbers = range(len(sample.questions))
            if any((sample.name, n, *key) not in there for key in keys for n in numbers):
                return count
        return len(self.task.samples)


def runs_of(precision: str) -> list[str]:
    """Return the names of the runs whose decoder has a precision."""
    return [name for name, run in RUNS.items() if run.precision == precision]


def _unpruned(name: str) -> str:
    """Return the run of the same precision that asks the unpruned model."""
    same = runs_of(RUNS[name].precision)
    return next(other for other in same if RUNS[other].asks_unpruned)


def _summarise(gathered: Gathered, full: Gathered, task: Task) -> Evaluation:
    num_segments = len(gathered.bundle.schedule.stages) + 1
    unpruned = [
        msgspec.structs.replace(
            record, num_visual_tokens=record.num_visual_tokens[:1] * num_segments
        )
        for record in full.records
        if (record.method, record.keep_ratio) == UNPRUNED
    ]
    pruned = [
        record for record in gathered.records if (record.method, record.keep_ratio) != UNPRUNED
    ]
    keys = [UNPRUNED, *(key for key in gathered.keys if key != UNPRUNED)]
    return summarise(
        gathered.bundle, gathered.conditions, [*unpruned, *pruned], task=task, keys=keys
    )
