"""What answers do not tell: the time of a prefill, and which tokens quantisation moves."""

from __future__ import annotations

import os
import statistics
from typing import TYPE_CHECKING

import msgspec
from evidence_runs import RUNS, runs_of

from feather_edge.bench.environment import Environment, describe_environment
from feather_edge.bench.measure import measure
from feather_edge.bench.requests import scene_requests
from feather_edge.bench.summary import PairRatio, compare_pairs
from feather_edge.bundle import Bundle
from feather_edge.evaluate.comparison import UNPRUNED
from feather_edge.evaluate.parity import overlap
from feather_edge.images import load_image
from feather_edge.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from evidence_runs import Answers, Key
    from numpy.typing import NDArray

    from feather_edge.evaluate.tasks import Sample
    from feather_edge.pruning import Pruning

    Kept = dict[Key, list[list[NDArray[np.int64]]]]
    """Indices that each stage keeps, question after question, by method and ratio."""

WARMUP, ROUNDS = 1, 8
NUM_OVERLAP_SCENES = 10


def row_name(key: Key) -> str:
    """Return the name of a method and keep ratio."""
    return f"{key[0]} {key[1]:g}"


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """Prefill times of every float32 run.

    Attributes:
        environment: conditions, of the first bundle.
        load_average_after: of the last minute, when all was measured.
        unpruned_ms: median prefill of each run's bundle, unpruned.
        ratios: by run and row, prefill by that of the unpruned request of the same round.
    """

    environment: Environment
    load_average_after: float
    unpruned_ms: dict[str, float]
    ratios: dict[str, dict[str, PairRatio]]


def measure_times(answers: Answers) -> Times:
    """Time the prefill of every float32 run, each row in turn with the unpruned one.

    Scenes and questions are the same for all bundles: those of the benchmark, not of the task.
    """
    environment = None
    unpruned_ms, ratios = {}, {}
    for name in runs_of("fp32"):
        bundle = Bundle.open(answers.bundle(name))
        with Session.open(bundle) as session:
            environment = environment or describe_environment(
                bundle, session.backend, target=None, num_threads=None, energy_sensors=()
            )
            prunings = RUNS[name].comparison.prunings(bundle)
            timings = measure(
                session,
                {row_name(key): pruning for key, pruning in prunings.items()},
                scene_requests(seed=0),
                warmup=WARMUP,
                repeat=ROUNDS,
                max_new_tokens=1,
            )
        columns = {row: [t.prefill_ms for t in each] for row, each in timings.items()}
        unpruned = columns.pop(row_name(UNPRUNED))
        unpruned_ms[name] = statistics.median(unpruned)
        pairs = {row: compare_pairs(column, unpruned) for row, column in columns.items()}
        ratios[name] = {row: pair for row, pair in pairs.items() if pair is not None}
    assert environment is not None  # noqa: S101 - there are float32 runs
    return Times(
        environment=environment,
        load_average_after=os.getloadavg()[0],
        unpruned_ms=unpruned_ms,
        ratios=ratios,
    )


class Overlaps(msgspec.Struct, frozen=True, kw_only=True):
    """How much of what the float32 decoder keeps a quantised one keeps too.

    Attributes:
        num_questions: about the first scenes of the task.
        shares: by quantised run and row, the mean share at each stage.
    """

    num_questions: int
    shares: dict[str, dict[str, tuple[float, ...]]]


def measure_overlaps(answers: Answers) -> Overlaps:
    """Compare the kept sets of quantised and float32 decoders on the same questions."""
    samples = answers.task.samples[:NUM_OVERLAP_SCENES]
    kept: dict[str, Kept] = {}
    shares = {}
    for name, run in RUNS.items():
        if run.float_run is None:
            continue
        prunings = run.comparison.prunings(Bundle.open(answers.bundle(name)))
        del prunings[UNPRUNED]
        for each in (run.float_run, name):
            if each not in kept:
                kept[each] = _kept(answers.bundle(each), prunings, samples)
        shares[name] = {
            row_name(key): _mean_overlap(kept[name][key], kept[run.float_run][key])
            for key in prunings
        }
    return Overlaps(num_questions=sum(len(sample.questions) for sample in samples), shares=shares)


def _kept(bundle: Path, prunings: Mapping[Key, Pruning], samples: Sequence[Sample]) -> Kept:
    """Return what the stages keep of every question, by method and ratio."""
    found: Kept = {key: [] for key in prunings}
    with Session.open(bundle) as session:
        for sample in samples:
            image = load_image(sample.image)
            for question in sample.questions:
                for key, pruning in prunings.items():
                    result = session.generate(
                        image, question.text, pruning=pruning, max_new_tokens=1
                    )
                    found[key].append([stage.kept_indices for stage in result.stages])
    return found


def _mean_overlap(
    found: Sequence[Sequence[NDArray[np.int64]]], wanted: Sequence[Sequence[NDArray[np.int64]]]
) -> tuple[float, ...]:
    """Return the mean share of the wanted tokens that were kept, by stage."""
    shares = [
        [overlap(*pair) for pair in zip(*stages, strict=True)]
        for stages in zip(found, wanted, strict=True)
    ]
    return tuple(statistics.fmean(column) for column in zip(*shares, strict=True))
