"""Measure what it costs when ONNX Runtime's waiting threads spin: one pool per graph, few cores.

Usage: python tools/measure_thread_spinning.py [--rounds N]

Opens the demo's bundle once with spinning pools and once without, each in a process of its own, in
turn, and prints medians of the prefill in milliseconds and the ratio, as one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from feather_edge.checkpoint import resolve_checkpoint
from feather_edge.demo import RECIPE, SCENES
from feather_edge.export.pipeline import export
from feather_edge.pruning import Pruning
from feather_edge.recipes import load_recipe
from feather_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from feather_edge.runtime.session import Session

SPINNING = "session.intra_op.allow_spinning"
NUM_REQUESTS = 12


def measure(bundle: Path, *, spins: bool) -> dict[str, float]:
    """Return the median prefill of requests in turn, unpruned and pruned, after a warm-up."""
    backend = OnnxRuntimeBackend()
    backend._options.add_session_config_entry(SPINNING, str(int(spins)))
    times: dict[str, list[float]] = {"unpruned_ms": [], "pruned_ms": []}
    with Session.open(bundle, backend=backend) as session:
        asked = {"unpruned_ms": Pruning(criterion="none"), "pruned_ms": session.pruning}
        for _ in range(2 + NUM_REQUESTS):
            for name, pruning in asked.items():
                result = session.generate(
                    SCENES / "00.png", "where is the green square ?", pruning=pruning
                )
                times[name].append(result.prefill_ms)
    return {name: statistics.median(values[2:]) for name, values in times.items()}


def main() -> None:
    """Parse options, measure both in turn, print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", nargs=2, metavar=("BUNDLE", "SPINS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        bundle, spins = options.worker
        print(json.dumps(measure(Path(bundle), spins=spins == "1")))
        return
    found: dict[str, list[dict[str, float]]] = {"1": [], "0": []}
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        export(resolve_checkpoint("demo"), bundle, load_recipe(RECIPE))
        for _ in range(options.rounds):
            for spins, rounds in found.items():
                command = [sys.executable, __file__, "--worker", str(bundle), spins]
                run = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
                rounds.append(json.loads(run.stdout))
    medians = {
        state: {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        for state, rounds in (("spinning", found["1"]), ("waiting", found["0"]))
    }
    ratio = {key: medians["waiting"][key] / medians["spinning"][key] for key in medians["waiting"]}
    print(json.dumps({**medians, "ratio": ratio}, indent=2))


if __name__ == "__main__":
    main()
