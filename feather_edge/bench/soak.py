"""A soak: ask at random for a long time, and look whether anything grows or goes wrong.

Requests come from several threads at once. Some are read to their end; some are cancelled midway
or dropped, in another thread than the one that began them; some are wrong and have to be refused.
Afterwards a fresh session is asked some of the same questions, and has to give the same answers.
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from feather_edge.bench.cases import ENDINGS, Ending, random_case
from feather_edge.bench.growth import Footprint, fitted_growth
from feather_edge.errors import BackendError, BenchmarkError, RequestError
from feather_edge.runtime.backend_names import ENGINE_BACKENDS
from feather_edge.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from feather_edge.bundle import Bundle
    from feather_edge.runtime.result import Result, Token

    OnProgress = Callable[[int, int], None]
    """Called with the seconds that have passed, and all that there are."""

    Answer = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]
    """Tokens, and kept indices of each stage."""

__all__ = ["SoakReport", "soak"]

NUM_READERS = 3
NUM_COMPARED = 40
WARMUP_SHARE = 0.25
MAX_GROWTH_MIB = 8.0
MAX_GROWTH_SHARE = 0.02
"""Memory may rise by the larger of the two: allocators keep what they once needed."""
MAX_FOOTPRINTS = 400


class SoakReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a soak saw.

    Attributes:
        duration_s: how long it ran.
        seed: of everything random.
        num_requests: by how they ended: answered, cancelled, dropped, refused.
        num_compared: answers that a fresh session was asked for as well.
        different: seeds of those that it answered otherwise.
        growth_mib: of host memory after the warm-up, along a fitted line.
        device_growth_mib: of device memory; None where the backend cannot say.
        max_growth_mib: what either may be.
        footprints: after the warm-up, in order.
    """

    duration_s: float
    seed: int
    num_requests: dict[Ending, int]
    num_compared: int
    different: tuple[int, ...]
    growth_mib: float
    device_growth_mib: float | None
    max_growth_mib: float
    footprints: tuple[Footprint, ...]

    @property
    def num_threads(self) -> tuple[int, int]:
        """Threads after the warm-up and at the end."""
        return self.footprints[0].num_threads, self.footprints[-1].num_threads

    @property
    def num_files(self) -> tuple[int, int]:
        """Open files after the warm-up and at the end."""
        return self.footprints[0].num_files, self.footprints[-1].num_files

    @property
    def summary(self) -> str:
        """The report for people."""
        ended = ", ".join(f"{count} {ending}" for ending, count in self.num_requests.items())
        device = self.device_growth_mib
        on_device = "" if device is None else f", on the device {device:+.1f} MiB"
        return (
            f"{self.duration_s:.0f} s: {ended}\n"
            f"memory {self.footprints[0].rss_mib:.0f} MiB after the warm-up, since then "
            f"{self.growth_mib:+.1f} MiB{on_device} (at most {self.max_growth_mib:.1f})\n"
            f"threads {' > '.join(map(str, self.num_threads))}, "
            f"open files {' > '.join(map(str, self.num_files))}\n"
            f"{self.num_compared} answers compared with a fresh session's, "
            f"{len(self.different)} different"
        )

    def check(self) -> None:
        """Hold what was seen against what a sound session does.

        Raises:
            BenchmarkError: naming the first thing that is wrong.
        """
        if not self.num_compared:
            raise BenchmarkError(f"no request was answered in {self.duration_s:.0f} s")
        if self.different:
            raise BenchmarkError(
                f"{len(self.different)} of {self.num_compared} answers differ from a fresh "
                f"session's, first that of case {self.different[0]} of seed {self.seed}"
            )
        growths = {"host": self.growth_mib, "device": self.device_growth_mib}
        for where, growth_mib in growths.items():
            if growth_mib is not None and growth_mib > self.max_growth_mib:
                raise BenchmarkError(
                    f"{where} memory grew by {growth_mib:.1f} MiB in {self.duration_s:.0f} s, "
                    f"more than {self.max_growth_mib:.1f}: something is leaked, or allocators "
                    f"have not settled, which takes minutes"
                )
        for what, (before, after) in {
            "threads": self.num_threads,
            "open files": self.num_files,
        }.items():
            if after > before:
                raise BenchmarkError(
                    f"{what} rose from {before} to {after} in {self.duration_s:.0f} s: something "
                    f"is leaked"
                )


def soak(
    bundle: Bundle,
    duration_s: float,
    *,
    seed: int = 0,
    backend: str = "auto",
    target: str | None = None,
    num_threads: int | None = None,
    cuda_graphs: bool = True,
    on_progress: OnProgress | None = None,
) -> SoakReport:
    """Ask a session at random for ``duration_s``; judge with ``SoakReport.check``.

    Args:
        bundle: an opened bundle.
        duration_s: how long; a quarter of it is for warming up.
        seed: of everything random.
        backend: what runs the graphs.
        target: whose engines, see ``Session.open``.
        num_threads: of one graph run on the CPU; None is the backend's own choice.
        cuda_graphs: whether decode steps may be captured as CUDA graphs.
        on_progress: called after each round of requests.

    Raises:
        BackendError: if the backend is missing or fails.
    """
    open_session = partial(
        Session.open,
        bundle,
        backend=backend,
        target=target,
        num_threads=num_threads,
        cuda_graphs=cuda_graphs,
    )
    footprints: list[Footprint] = []
    start_s = last_s = time.perf_counter()
    # 1. Rounds of one request per reader; in between nothing runs, and the process is looked at.
    with open_session() as session, ThreadPoolExecutor(NUM_READERS) as readers:
        asker = _Asker(session, seed)
        while len(footprints) < 2 or time.perf_counter() - start_s < duration_s:
            asker.ask_round(readers)
            now_s = time.perf_counter()
            is_warm = now_s - start_s >= WARMUP_SHARE * duration_s
            if is_warm and (not footprints or now_s - last_s >= duration_s / MAX_FOOTPRINTS):
                gc.collect()
                footprints.append(Footprint.now(now_s - start_s, session.backend))
                last_s = now_s
            if on_progress is not None:
                on_progress(round(min(now_s - start_s, duration_s)), round(duration_s))
        gc.collect()
        footprints.append(Footprint.now(time.perf_counter() - start_s, session.backend))
    # 2. The same questions to a session that has lived through nothing.
    with open_session() as session:
        different = [
            number
            for number, answer in asker.answers.items()
            if _answer_of(session.generate(**random_case(bundle, (seed, number)).request))
            != answer
        ]
    # 3. What grew?
    return _report(footprints, asker, different)


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """What a reader has done with a request: an answer, a stream left midway, or neither."""

    number: int
    ending: Ending
    answer: Answer | None = None
    stream: Generator[Token, None, Result] | None = None


class _Asker:
    """Asks a session, and keeps some of its answers by the numbers of their cases."""

    def __init__(self, session: Session, seed: int) -> None:
        self.seed = seed
        self.counts: Counter[Ending] = Counter()
        self.answers: dict[int, Answer] = {}
        self._session = session
        # Engines have limits that random requests may exceed.
        on_engines = session.backend.name in ENGINE_BACKENDS
        self._refusals = (RequestError, BackendError) if on_engines else (RequestError,)
        self._rng = np.random.default_rng(seed)
        self._number = 0

    def ask_round(self, readers: ThreadPoolExecutor) -> None:
        """Let each reader begin a request; what is left midway ends in this thread."""
        numbers = range(self._number, self._number + NUM_READERS)
        self._number += NUM_READERS
        for begun in readers.map(self._begin, numbers):
            if begun.ending == "cancelled" and begun.stream is not None:
                begun.stream.close()
            self.counts[begun.ending] += 1
            if begun.answer is not None:
                self._keep(begun.number, begun.answer)

    def _begin(self, number: int) -> _Begun:
        case = random_case(self._session.bundle, (self.seed, number))
        stream = self._session.stream(**case.request)
        try:
            if case.ending in ("cancelled", "dropped"):
                for _ in range(case.num_read):
                    next(stream, None)
                return _Begun(number=number, ending=case.ending, stream=stream)
            answer = _answer_of(self._session.generate(**case.request))
        except self._refusals:
            return _Begun(number=number, ending="refused")
        if case.ending == "refused":
            raise BenchmarkError(f"case {number} of seed {self.seed} is wrong, yet was answered")
        return _Begun(number=number, ending="answered", answer=answer)

    def _keep(self, number: int, answer: Answer) -> None:
        """Keep every answer with the same chance, early and late ones."""
        if len(self.answers) >= NUM_COMPARED:
            place = int(self._rng.integers(self.counts["answered"]))
            if place >= NUM_COMPARED:
                return
            del self.answers[list(self.answers)[place]]
        self.answers[number] = answer


def _answer_of(result: Result) -> Answer:
    return result.token_ids, tuple(tuple(s.kept_indices.tolist()) for s in result.stages)


def _report(
    footprints: Sequence[Footprint], asker: _Asker, different: Sequence[int]
) -> SoakReport:
    times_s = [each.at_s for each in footprints]
    device_mib = [each.device_mib for each in footprints if each.device_mib is not None]
    rss = [each.rss_mib for each in footprints]
    return SoakReport(
        duration_s=times_s[-1],
        seed=asker.seed,
        num_requests={ending: asker.counts[ending] for ending in ENDINGS},
        num_compared=len(asker.answers),
        different=tuple(different),
        growth_mib=fitted_growth(times_s, rss),
        device_growth_mib=fitted_growth(times_s, device_mib) if device_mib else None,
        max_growth_mib=max(MAX_GROWTH_MIB, MAX_GROWTH_SHARE * rss[0]),
        footprints=tuple(footprints),
    )
