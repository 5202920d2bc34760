"""What answers do not tell: the time of a prefill, and which tokens quantisation moves."""

from __future__ import annotations

import dataclasses
import os
import statistics
from contextlib import ExitStack
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
    from collections.abc import Sequence

    from evidence_runs import Answers, Key

    from feather_edge.evaluate.tasks import Sample
    from feather_edge.pruning import Pruning

WARMUP, ROUNDS = 2, 15
NUM_OVERLAP_SCENES = 50


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
            prunings = _with_unpruned(name, bundle)
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
    quantised = {name: run.float_run for name, run in RUNS.items() if run.float_run is not None}
    shares = {}
    for float_name in dict.fromkeys(quantised.values()):
        names = [name for name, base in quantised.items() if base == float_name]
        with ExitStack() as stack:
            reference, *others = (
                stack.enter_context(Session.open(answers.bundle(name)))
                for name in (float_name, *names)
            )
            prunings = RUNS[names[0]].comparison.prunings(reference.bundle)
            prunings.pop(UNPRUNED, None)
            for name, session in zip(names, others, strict=True):
                shares[name] = {
                    row_name(key): _mean_overlap(session, reference, pruning, samples)
                    for key, pruning in prunings.items()
                }
    return Overlaps(num_questions=sum(len(sample.questions) for sample in samples), shares=shares)


def _mean_overlap(
    session: Session, reference: Session, pruning: Pruning, samples: Sequence[Sample]
) -> tuple[float, ...]:
    """Return the mean share of the reference's kept tokens that a session keeps, by stage."""
    shares = []
    for sample in samples:
        image = load_image(sample.image)
        for question in sample.questions:
            found, wanted = (
                each.generate(image, question.text, pruning=pruning, max_new_tokens=1).stages
                for each in (session, reference)
            )
            shares.append(
                [
                    overlap(stage.kept_indices, other.kept_indices)
                    for stage, other in zip(found, wanted, strict=True)
                ]
            )
    return tuple(statistics.fmean(column) for column in zip(*shares, strict=True))


def _with_unpruned(name: str, bundle: Bundle) -> dict[Key, Pruning]:
    comparison = dataclasses.replace(RUNS[name].comparison, has_unpruned=True)
    return comparison.prunings(bundle)
