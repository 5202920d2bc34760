"""Measure feather-edge beside transformers, OpenVINO GenAI, onnxruntime-genai and llama.cpp.

    python tools/compare_peers/compare.py OUT [--models NAME ...] [--step STEP ...]

Steps, all of them unless some are named:
    prepare  random checkpoints, a virtual environment of pinned packages for each peer, and the
             checkpoints as each peer wants them
    agree    everyone alone is asked the same questions, and the greedy tokens are compared
    rounds   everyone is asked in turn, round by round, no picture or question twice
    report   OUT/report.md, and OUT/results.json with every sample

What is in OUT already is not made again, so the same command goes on where it was stopped; delete
OUT/MODEL/rounds.json to measure a model again. Times want a quiet machine: prepare and agree
before, then close other programs and ask for `--step rounds report`. Needs 30 GB of disk and the
network for pip; of contenders that do not fit in memory together, some start again each round.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from compare_peers.arena import Arena, Settings
from compare_peers.models import MODELS
from compare_peers.report import model_report

PEERS = (
    "torch_transformers",  # the reference of all tokens comes first
    "openvino_genai",
    "onnxruntime_genai",
    "llama_cpp",
    "feather_edge_bundles",
)
STEPS = ("prepare", "agree", "rounds", "report")


def parsed(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=lambda text: Path(text).resolve())
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="as reports name them; all")
    parser.add_argument("--step", nargs="+", choices=STEPS, default=STEPS, help="(default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16, help="of each answer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--longest-ms",
        type=float,
        default=15000,
        help="rows whose first token takes longer are named, but not in the rounds",
    )
    return parser.parse_args(arguments)


def run(arguments: list[str]) -> None:
    """Take the steps that the command line names, each for every model."""
    options = parsed(arguments)
    settings = Settings(
        out=options.out,
        peers=options.peers,
        rows=options.rows,
        num_rounds=options.rounds,
        num_tokens=options.tokens,
        num_threads=options.threads,
        longest_ms=options.longest_ms,
        arguments=(__file__, *arguments),
    )
    options.out.mkdir(parents=True, exist_ok=True)
    arenas = [Arena(name, settings) for name in options.models]
    # 1. What takes the network, disk and time, but no quiet machine.
    if "prepare" in options.step:
        for arena in arenas:
            arena.prepare()
    # 2. Greedy tokens.
    if "agree" in options.step:
        for arena in arenas:
            print(arena.name, flush=True)
            arena.agree()
    # 3. Times.
    if "rounds" in options.step:
        for arena in arenas:
            print(arena.name, flush=True)
            arena.measure()
    # 4. What there is, in words.
    if "report" in options.step:
        report(arenas, options.out)


def report(arenas: list[Arena], out: Path) -> None:
    """Write, and print, what is known of the models."""
    results = {arena.name: arena.result() for arena in arenas}
    document = {"models": {name: asdict(result) for name, result in results.items()}}
    (out / "results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    text = "\n".join(model_report(arena.name, arena.rows, results[arena.name]) for arena in arenas)
    (out / "report.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    run(sys.argv[1:])
