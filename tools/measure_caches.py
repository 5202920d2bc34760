"""Time KV caches in place against grown ones in ONNX Runtime: prefill and decode steps.

Usage: python tools/measure_caches.py [CHECKPOINT] [--precision P[,P...]] [--rows R[,R...]]
           [--threads N[,N...]] [--stages LAYER[,LAYER...]] [--rounds N]

Exports CHECKPOINT (the shipped model) in each precision and opens it twice: the graphs as they lie
in the bundle, whose caches grow, and rewritten for caches in place. Both chains then take the same
random rows, unpruned, in turn. Prints one line for each precision, number of threads and of rows:
what caches in place take of the time of grown ones, by CPU time (least of all rounds) and by wall
clock (median of the ratios of the rounds). On a machine that is not quiet CPU time is the one to
trust.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feather_edge.checkpoint import resolve_checkpoint
from feather_edge.demo import RECIPE
from feather_edge.export.pipeline import export
from feather_edge.pruning import Layout
from feather_edge.recipes import load_recipe, override
from feather_edge.runtime.backends import create_backend
from feather_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from feather_edge.runtime.decoder import DecoderChain
from feather_edge.runtime.embeddings import Embeddings

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from feather_edge.bundle import Bundle
    from feather_edge.runtime.backends import Backend

NUM_STEPS = 8
FORMS = ("grown", "in place")
PARTS = ("prefill", "decode step")

Taken = dict[tuple[str, str], list[tuple[float, float]]]
"""CPU and wall seconds of every round, by part and form."""


class Decoders:
    """The segments of a bundle in one backend, opened once."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self._bundle = bundle
        self._backend = backend
        self._graphs = [backend.open(bundle.path / spec.file, spec) for spec in bundle.decoders]

    @property
    def has_caches_in_place(self) -> bool:
        """Whether every segment has."""
        return all(graph.spec.caches_in_place for graph in self._graphs)

    def run(self, embeds: NDArray[Any], note: Callable[[str, float, float], None]) -> None:
        """Prefill the rows and decode a few steps; note the seconds of each part."""
        chain = DecoderChain(
            self._graphs,
            self._bundle.manifest,
            self._bundle.schedule,
            self._backend,
            max_new_tokens=NUM_STEPS,
        )
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        chain.prefill(embeds, Layout.full(len(embeds), []), None)
        note(PARTS[0], time.process_time() - cpu_s, time.perf_counter() - wall_s)
        for _ in range(NUM_STEPS):
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            chain.decode_step(embeds[-1])
            note(PARTS[1], time.process_time() - cpu_s, time.perf_counter() - wall_s)


def opened(bundle: Bundle, *, num_threads: int) -> dict[str, Decoders]:
    """Return the decoder in both forms.

    Raises:
        SystemExit: if ONNX Runtime cannot keep its caches in place.
    """
    grown = OnnxRuntimeBackend(device="cpu", num_threads=num_threads)
    in_place = create_backend("onnxruntime", bundle, num_threads=num_threads)
    decoders = dict(
        zip(FORMS, (Decoders(bundle, each) for each in (grown, in_place)), strict=True)
    )
    if not decoders[FORMS[1]].has_caches_in_place:
        raise SystemExit(f"{bundle.path}: this decoder's caches are never kept in place")
    return decoders


def measure(bundle: Bundle, *, num_threads: int, num_rows: int, num_rounds: int) -> Taken:
    """Run both forms in turn, after a round that does not count."""
    decoders = opened(bundle, num_threads=num_threads)
    vocabulary = bundle.manifest.decoder.vocab_size
    ids = np.random.default_rng(0).integers(0, vocabulary, num_rows)
    embeds = Embeddings.open(bundle)[ids]
    taken: Taken = {(part, form): [] for part in PARTS for form in FORMS}
    for number in range(-1, num_rounds):
        for form in FORMS if number % 2 else reversed(FORMS):

            def note(part: str, cpu_s: float, wall_s: float, form: str = form) -> None:
                taken[part, form].append((cpu_s, wall_s))

            decoders[form].run(embeds, note)
        if number < 0:
            for seconds in taken.values():
                seconds.clear()
    return taken


def report(taken: Taken) -> str:
    """Return what caches in place take of the time of grown ones."""
    columns = []
    for part in PARTS:
        grown, in_place = (taken[part, form] for form in FORMS)
        cpu = min(cpu for cpu, _ in in_place) / min(cpu for cpu, _ in grown)
        wall = statistics.median(a / b for (_, a), (_, b) in zip(in_place, grown, strict=True))
        milliseconds = min(cpu for cpu, _ in grown) * 1e3
        columns.append(f"{part} {cpu:.2f} by CPU ({wall:.2f} by clock) of {milliseconds:8.2f} ms")
    return "; ".join(columns)


def main() -> None:
    """Parse options, export, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?", default="demo")
    parser.add_argument("--precision", default="fp32,int8")
    parser.add_argument("--rows", default="60,214,600,1000")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--stages", help="as export has them; the shipped model's own if left out")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    recipe = load_recipe(RECIPE)
    if options.stages is not None:
        stages = tuple(int(layer) for layer in options.stages.split(","))
        recipe = override(recipe, stages=stages)
    with tempfile.TemporaryDirectory() as folder:
        for precision in options.precision.split(","):
            asked = override(recipe, precision=precision)
            bundle = export(
                resolve_checkpoint(options.checkpoint), Path(folder) / precision, asked
            )
            for num_threads in map(int, options.threads.split(",")):
                for num_rows in map(int, options.rows.split(",")):
                    taken = measure(
                        bundle,
                        num_threads=num_threads,
                        num_rows=num_rows,
                        num_rounds=options.rounds,
                    )
                    where = f"{precision:5} {num_threads} threads {num_rows:5} rows"
                    print(f"{where}: {report(taken)}", flush=True)


if __name__ == "__main__":
    main()
