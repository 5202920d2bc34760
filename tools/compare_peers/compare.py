"""Measure feather-edge beside transformers, OpenVINO GenAI, onnxruntime-genai and llama.cpp.

Usage: python tools/compare_peers/compare.py OUT [--models NAME ...] [--rows ROW ...]

Makes random checkpoints and, for every peer, a virtual environment of pinned packages; prepares
the checkpoints as each peer wants them; asks everyone the same questions, each alone, and compares
the greedy tokens; then measures all in turn, round by round, no picture or question twice. Writes
OUT/results.json with every sample, and OUT/report.md. What is in OUT already is not made again.
Close other programs first, and have 25 GB of disk, 20 GB of memory and the network for pip.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from compare_peers import environments, questions
from compare_peers.checkpoints import write_checkpoint
from compare_peers.models import MODELS
from compare_peers.report import model_report
from compare_peers.runner import TOOLS, Answer, PeerError, Worker, measure
from compare_peers.summary import agreement
from feather_edge.platform_facts import processor_name, read_platform

if TYPE_CHECKING:
    from types import ModuleType

    from compare_peers.contenders import Row

PEERS = (
    "torch_transformers",  # the reference of all tokens comes first
    "openvino_genai",
    "onnxruntime_genai",
    "llama_cpp",
    "feather_edge_bundles",
)
NUM_CHECKS = 2
"""Questions that everyone is asked alone, before the rounds."""
REFERENCE = "transformers fp32"


@dataclass(kw_only=True)
class Comparison:
    """One model's results as they grow.

    Attributes:
        checks: answers of everyone alone, by row.
        answers: those that count, by row.
        reasons: why a row or a variant was not measured.
        facts: what contenders say of themselves, and their largest resident memory.
    """

    checks: dict[str, list[Answer]] = field(default_factory=dict)
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class Arena:
    """Where one model is prepared, checked and measured."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name = name
        self.folder = options.out / name
        self.checkpoint = self.folder / "checkpoint"
        self.options = options
        self.result = Comparison()
        self.modules = {
            peer: importlib.import_module(f"compare_peers.peers.{peer}") for peer in options.peers
        }
        self.rows = [
            row
            for module in self.modules.values()
            for row in module.ROWS
            if options.rows is None or row.name in options.rows
        ]
        self._commands: dict[Row, list[str]] = {}

    def prepare(self) -> None:
        """Write the checkpoint, and what each variant needs of it."""
        if not self.checkpoint.exists():
            print(f"{self.name}: checkpoint", flush=True)
            text = (TOOLS / "texts" / "coriolanus.txt").read_text(encoding="utf-8")
            write_checkpoint(MODELS[self.name], self.checkpoint, text)
        for peer, module in self.modules.items():
            for row in module.ROWS:
                if row in self.rows:
                    self._prepare_row(peer, module, row)

    def check(self) -> None:
        """Ask every variant alone; those that fail, or take too long, are left out."""
        for row in list(self._commands):
            try:
                given = self._asked_alone(row)
            except PeerError as error:
                self.result.reasons[row.name] = str(error)
                del self._commands[row]
                continue
            self.result.checks[row.name] = given
            ttft_ms = min(answer.ttft_ms for answer in given)
            print(f"  alone    {row.name:46} first token {ttft_ms:9.1f} ms", flush=True)
            if ttft_ms > self.options.longest_ms:
                self.result.reasons[row.name] = (
                    f"first token after {ttft_ms / 1e3:.0f} s, so it takes no part in the rounds"
                )
                del self._commands[row]

    def measure(self) -> None:
        """Measure all in turn, after one round that does not count."""
        rows = [row for row in self._commands if row.is_timed]
        by_variant: dict[tuple[str, ...], Worker] = {}
        workers = {}
        try:
            for row in rows:
                command = tuple(self._commands[row])
                if command not in by_variant:
                    by_variant[command] = self._start(row, list(command))
                workers[row] = by_variant[command]
            requests = self._requests("round", self.options.rounds + 1)
            measure(rows, workers, requests[:1])
            self.result.answers = measure(rows, workers, requests[1:])
        finally:
            for worker in by_variant.values():
                worker.close()

    def agreement(self) -> dict[str, float]:
        """Return the share of the reference's tokens, by unpruned row."""
        unpruned = {row.name for row in self.rows if row.keep_ratio is None}
        checks = {name: given for name, given in self.result.checks.items() if name in unpruned}
        return agreement(checks, REFERENCE) if REFERENCE in checks else {}

    def _prepare_row(self, peer: str, module: ModuleType, row: Row) -> None:
        try:
            self._commands[row] = self._prepared(peer, module, row)
        except PeerError as error:
            self.result.reasons[row.name] = str(error)

    def _prepared(self, peer: str, module: ModuleType, row: Row) -> list[str]:
        python = environments.make(module.ENVIRONMENT, self.options.out / "environments")
        folder = self.folder / f"{peer} {row.files}".replace(" ", "-")
        worker = [str(python), "-m", "compare_peers.worker"]
        step = [peer, row.variant, str(self.checkpoint), str(folder)]
        done, log = Path(f"{folder}.done"), Path(f"{folder}.log")
        if not done.exists():
            print(f"{self.name}: {folder.name}", flush=True)
            with log.open("w") as output:
                status = subprocess.run(  # noqa: S603
                    [*worker, "prepare", *step],
                    check=False,
                    env=Worker.environment(self.options.threads),
                    stdout=output,
                    stderr=output,
                ).returncode
            done.write_text(json.dumps(_last_line(log) if status else None))
        if failure := json.loads(done.read_text()):
            raise PeerError(failure)
        return [*worker, "answer", *step, str(self.options.threads)]

    def _asked_alone(self, row: Row) -> list[Answer]:
        worker = self._start(row, self._commands[row])
        try:
            requests = self._requests("check", NUM_CHECKS)
            given = [worker.ask(each | {"keep_ratio": row.keep_ratio}) for each in requests]
            self.result.facts[row.name] = worker.facts | {"peak_rss_mib": worker.rss_mib()}
        finally:
            worker.close()
        return given

    def _start(self, row: Row, command: list[str]) -> Worker:
        log = self.folder / f"{row.variant.replace(' ', '-')}.answers.log"
        return Worker(command, num_threads=self.options.threads, log=log)

    def _requests(self, part: str, number: int) -> list[dict[str, Any]]:
        pictures = self.options.out / "pictures"
        side = MODELS[self.name].image_side
        return [
            {"image": str(path), "question": question, "max_new_tokens": self.options.tokens}
            for path, question in questions.ask(pictures, part, side=side, number=number)
        ]


def describe(arena: Arena, options: argparse.Namespace) -> dict[str, Any]:
    """Return the conditions that all models are measured under."""
    facts = read_platform()
    return {
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": facts.board or processor_name(),
        "cpu_flags": sorted({"avx2", "avx512f", "avx512_vnni", "avx512_bf16"} & _cpu_flags()),
        "num_cores": len(os.sched_getaffinity(0)),
        "num_threads": options.threads,
        "load_average": os.getloadavg()[0],
        "command": ["python", "tools/compare_peers/compare.py", *sys.argv[1:]],
        "packages": {
            module.ENVIRONMENT.name: environments.versions(
                options.out / "environments" / module.ENVIRONMENT.name
            )
            for module in arena.modules.values()
        },
    }


def _cpu_flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), f"failed without a word; see {log}")


def run(arguments: list[str]) -> None:
    """Parse the command line, measure every model, write."""
    parser = argparse.ArgumentParser(description="feather-edge beside its peers")
    parser.add_argument("out", type=lambda text: Path(text).resolve())
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="as reports name them; all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16, help="of each answer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--longest-ms",
        type=float,
        default=15000,
        help="rows whose first token takes longer are named, but not in the rounds",
    )
    parser.add_argument("--prepare-only", action="store_true")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    arenas = [Arena(name, options) for name in options.models]
    for arena in arenas:
        arena.prepare()
    if options.prepare_only:
        return
    document: dict[str, Any] = {"environment": describe(arenas[0], options), "models": {}}
    sections = []
    for arena in arenas:
        print(arena.name, flush=True)
        arena.check()
        arena.measure()
        agreeing = arena.agreement()
        document["models"][arena.name] = asdict(arena.result) | {"agreement": agreeing}
        sections.append(
            model_report(
                arena.name, arena.rows, arena.result.answers, agreeing, arena.result.reasons
            )
        )
        text = "\n".join(sections)
        (options.out / "report.md").write_text(text, encoding="utf-8")
        (options.out / "results.json").write_text(json.dumps(document, indent=2))
    print("\n".join(sections))


if __name__ == "__main__":
    run(sys.argv[1:])
