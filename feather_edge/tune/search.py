"""The cheapest schedule, method and keep ratio that keep enough of the unpruned accuracy.

Chosen on one part of the questions, reported on another that no choice has seen.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import msgspec

from feather_edge.errors import RequestError
from feather_edge.evaluate.evaluation import evaluate
from feather_edge.evaluate.summary import Row
from feather_edge.evaluate.tasks import Task, load_task, of_kind
from feather_edge.pruning.flops import paper_layer_cost, schedule_cost
from feather_edge.tune.ladder import comparison

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from feather_edge.bundle import Bundle
    from feather_edge.evaluate.answers import BoxFormat
    from feather_edge.evaluate.tasks import Kind

    OnProgress = Callable[[int, int], None]

__all__ = ["Candidate", "Requirement", "Search", "load_halves", "search"]

AccuracyOf = Literal["both", "localisation", "coarse"]


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle, method and keep ratio on the questions that serve for the choice.

    Attributes:
        bundle: folder; its export fixed the stages.
        stages: decoder layers before which it prunes.
        method: as ``eval`` names it.
        keep_ratio: as ``eval`` takes it.
        num_visual_tokens: that entered each segment, mean.
        flops_ratio: decoder prefill by the unpruned one, text tokens included.
        visual_flops_saved: share of the prefill's FLOPs for visual tokens that is saved, by
            FEATHER's formula.
        kept: accuracy by the unpruned one, for each kind of question that counts.
        is_accepted: whether all of them are enough.
    """

    bundle: str
    stages: tuple[int, ...]
    method: str
    keep_ratio: float
    num_visual_tokens: tuple[float, ...]
    flops_ratio: float
    visual_flops_saved: float
    kept: dict[str, float]
    is_accepted: bool


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """What was tried, what was chosen, and how it does on questions that served no choice.

    Attributes:
        task: name of the questions.
        min_accuracy: share of the unpruned accuracy that had to be kept.
        num_samples: pictures of each part.
        candidates: all, cheapest first.
        chosen: the cheapest that keeps enough.
        unpruned: of the held-out part.
        pruned: the chosen one on it.
        kept: what it keeps there.
    """

    task: str
    min_accuracy: float
    num_samples: tuple[int, int]
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    unpruned: Row
    pruned: Row
    kept: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """What must be kept.

    Attributes:
        min_accuracy: share of the unpruned accuracy, above 0 and at most 1.
        of: kinds of questions that count, as far as they are asked.
        development: questions for the choice.
        test: questions for the report.
        box_format: how the model writes boxes; None takes location tokens.
    """

    min_accuracy: float
    of: AccuracyOf
    development: Task
    test: Task
    box_format: BoxFormat | None = None

    def __post_init__(self) -> None:
        if not 0 < self.min_accuracy <= 1:
            raise RequestError(
                f"min-accuracy {self.min_accuracy:g} is a share of the unpruned model's accuracy; "
                f"it must be in (0, 1]"
            )

    def kept(self, row: Row, unpruned: Row) -> dict[str, float]:
        """Return the share of the unpruned accuracy that a row keeps, for each kind that counts.

        Raises:
            RequestError: if there is no such question, or the unpruned model answers none.
        """
        kinds: tuple[Kind, ...] = ("localisation", "coarse") if self.of == "both" else (self.of,)
        kept: dict[str, float] = {}
        for kind in kinds:
            now, before = (getattr(each, f"{kind}_acc") for each in (row, unpruned))
            if before == 0:
                raise RequestError(
                    f"the unpruned model is right about no {kind} question of "
                    f"{self.development.name}, so there is nothing to keep; choose questions that "
                    f"it can answer"
                )
            if before is not None:
                kept[kind] = now / before
        if not kept:
            raise RequestError(f"{self.development.name} has no {self.of} question")
        return kept


def load_halves(
    task: str,
    *,
    of: AccuracyOf = "both",
    data: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    images: Path | None = None,
    truth_boxes: str | None = None,
    ask: str | None = None,
) -> tuple[Task, Task]:
    """Return questions for the choice and questions for the report; arguments of ``load_task``.

    Generated scenes have a split for each; of a file every second sample is held out. Only
    questions ``of`` the kind that counts are asked; ``limit`` holds for each part.

    Raises:
        RequestError: as ``load_task``, or if a part has no such question.
    """
    load = partial(load_task, task, data=data, images=images, truth_boxes=truth_boxes, ask=ask)
    if task == "scenes" or (task == "coarse" and data is None):
        if split is not None:
            raise RequestError(
                f"split {split} has no effect: scenes are chosen on development and reported on "
                f"test; leave it out"
            )
        parts = [load(split=name, limit=limit) for name in ("development", "test")]
    else:
        parts = [load(split=split)] * 2
    kind = None if of == "both" else of
    halves = []
    for number, part in enumerate(parts):
        samples = tuple(of_kind(part.samples, kind))
        if parts[0] is parts[1]:
            samples = samples[number::2][:limit]
        if not samples:
            raise RequestError(
                f"{part.name} has too few {of} questions; it must have one to choose by and one "
                f"to hold out"
            )
        digest = f"{part.digest} {of} {number}"
        halves.append(dataclasses.replace(part, samples=samples, digest=digest))
    return halves[0], halves[1]


def search(
    bundles: Sequence[Bundle],
    requirement: Requirement,
    *,
    methods: Sequence[str],
    keep_ratios: Sequence[float],
    output: Path,
    backend: str,
    target: str | None,
    on_progress: OnProgress | None = None,
) -> Search:
    """Try every bundle, method and keep ratio; report the cheapest that keeps enough.

    Args:
        bundles: exports of one checkpoint with different stages, or just one.
        requirement: what must be kept, of which questions.
        methods: as ``eval`` names them.
        keep_ratios: as ``eval`` takes them.
        output: folder of the answers; those it holds already are not asked for again.
        backend: what runs the graphs.
        target: whose engines.
        on_progress: called with the samples done of one comparison.

    Raises:
        RequestError: if none keeps enough, saying how much the best one keeps.
    """
    compare = partial(
        evaluate,
        box_format=requirement.box_format,
        backend=backend,
        target=target,
        on_progress=on_progress,
    )
    # 1. Everything, on the questions for the choice.
    candidates: list[Candidate] = []
    for number, bundle in enumerate(bundles):
        tried = comparison(bundle, methods, keep_ratios)
        folder = output / f"development-{number}"
        rows = compare(bundle.path, requirement.development, tried, output=folder).rows
        candidates += [_candidate(bundle, row, rows[0], requirement) for row in rows[1:]]
    candidates.sort(key=lambda each: (each.flops_ratio, -min(each.kept.values())))
    # 2. The cheapest that is good enough.
    chosen = next((each for each in candidates if each.is_accepted), None)
    if chosen is None:
        best = max(candidates, key=lambda each: min(each.kept.values()))
        raise RequestError(
            f"nothing keeps {requirement.min_accuracy:.0%} of the unpruned accuracy on "
            f"{requirement.development.name}; the best, {best.method} at {best.keep_ratio:g}, "
            f"keeps {min(best.kept.values()):.1%}: lower --min-accuracy, or give larger keep "
            f"ratios"
        )
    # 3. How it does on questions that served no choice.
    bundle = next(each for each in bundles if str(each.path) == chosen.bundle)
    last = comparison(bundle, [chosen.method], [chosen.keep_ratio])
    unpruned, pruned = compare(bundle.path, requirement.test, last, output=output / "test").rows
    return Search(
        task=requirement.development.name,
        min_accuracy=requirement.min_accuracy,
        num_samples=(len(requirement.development.samples), len(requirement.test.samples)),
        candidates=tuple(candidates),
        chosen=chosen,
        unpruned=unpruned,
        pruned=pruned,
        kept=requirement.kept(pruned, unpruned),
    )


def _candidate(bundle: Bundle, row: Row, unpruned: Row, requirement: Requirement) -> Candidate:
    kept = requirement.kept(row, unpruned)
    shape = bundle.manifest.decoder
    cost = partial(
        paper_layer_cost, hidden_size=shape.hidden_size, ffn_size=shape.intermediate_size
    )
    before, after = (
        schedule_cost(bundle.schedule, [round(n) for n in each.num_visual_tokens], cost)
        for each in (unpruned, row)
    )
    return Candidate(
        bundle=str(bundle.path),
        stages=bundle.schedule.stages,
        method=row.method,
        keep_ratio=row.keep_ratio,
        num_visual_tokens=row.num_visual_tokens,
        flops_ratio=row.flops_ratio,
        visual_flops_saved=1 - after / before,
        kept=kept,
        is_accepted=min(kept.values()) >= requirement.min_accuracy,
    )
