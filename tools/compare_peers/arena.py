"""One model's place: what is prepared, asked and measured there, each kept in a file.

What a file holds already is not made again; delete it to have it made anew:

- ``PEER-FILES.done`` beside the folder of what a peer wants of the checkpoint: why that failed;
- ``agreement.json``: everyone's answers alone, by row;
- ``rounds.json``: the answers that count, and the conditions.
"""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from compare_peers import environments, questions
from compare_peers.agreement import NUM_CHOICES, Agreement, agreement
from compare_peers.checkpoints import write_checkpoint
from compare_peers.conditions import conditions
from compare_peers.models import MODELS
from compare_peers.runner import TOOLS, Answer, PeerError, Worker, measure
from compare_peers.workers import Workers, shared_processes
from feather_edge.platform_facts import read_platform
from feather_edge.staging import write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import ModuleType

    from compare_peers.contenders import Row

NUM_CHECKS = 2
"""Questions that everyone is asked alone."""
REFERENCE = "transformers fp32"
SPARE_MIB = 2048
"""Memory that contenders leave free, all together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What all models have in common.

    Attributes:
        out: where everything is written.
        peers: whose modules take part.
        rows: names of those that take part; None for all.
        num_rounds: that count.
        num_tokens: of each answer.
        num_threads: of each contender.
        longest_ms: rows whose first token takes longer are not measured further.
        arguments: the program and its arguments.
    """

    out: Path
    peers: Sequence[str]
    rows: Sequence[str] | None
    num_rounds: int
    num_tokens: int
    num_threads: int
    longest_ms: float
    arguments: Sequence[str]


@dataclass(kw_only=True)
class Result:
    """One model's results, as far as there are any.

    Attributes:
        conditions: of the rounds; see ``conditions.conditions``.
        checks: answers of everyone alone, by row.
        facts: what contenders say of themselves, and their largest resident memory, by row.
        answers: those of the rounds, by row.
        agreement: with the reference's tokens, by unpruned row.
        reasons: why a row is missing, by row.
    """

    conditions: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, list[Answer]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    agreement: dict[str, Agreement] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


class Arena:
    """Where one model is prepared, asked and measured."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.settings = settings
        self._folder = settings.out / name
        self._checkpoint = self._folder / "checkpoint"
        self._environments = settings.out / "environments"
        self._agreement = self._folder / "agreement.json"
        self._rounds = self._folder / "rounds.json"
        self._modules: dict[Row, tuple[str, ModuleType]] = {}
        for peer in settings.peers:
            module = importlib.import_module(f"compare_peers.peers.{peer}")
            self._modules |= {
                row: (peer, module)
                for row in module.ROWS
                if settings.rows is None or row.name in settings.rows
            }
        self.rows = list(self._modules)

    def prepare(self) -> None:
        """Write the checkpoint, and what each variant needs of it, in its environment."""
        if not self._checkpoint.exists():
            print(f"{self.name}: checkpoint", flush=True)
            text = (TOOLS / "texts" / "coriolanus.txt").read_text(encoding="utf-8")
            draft = self._folder / "checkpoint.draft"
            shutil.rmtree(draft, ignore_errors=True)
            write_checkpoint(MODELS[self.name], draft, text)
            draft.rename(self._checkpoint)
        for row in self.rows:
            try:
                environments.make(self._modules[row][1].ENVIRONMENT, self._environments)
            except PeerError as error:
                print(f"{row.name}: {error}", flush=True)
                continue
            if not self._mark(row).exists():
                self._prepare_files(row)

    def agree(self) -> None:
        """Ask everyone alone who has not answered, the reference also for its other choices."""
        known = _read(self._agreement)
        for row in self.rows:
            if "answers" not in known.get(row.name, {}):
                try:
                    known[row.name] = self._asked_alone(row)
                except PeerError as error:
                    print(f"  alone    {row.name}: {error}", flush=True)
                    known[row.name] = {"reason": str(error)}
                _write(self._agreement, known)

    def measure(self) -> None:
        """Measure all in turn, after one round that does not count."""
        known = _read(self._agreement)
        if self._rounds.exists():
            print(f"  rounds are in {self._rounds}: delete it to measure again", flush=True)
            return
        rows = [row for row in self.rows if row.is_timed and "answers" in known.get(row.name, {})]
        made = {self._modules[row][1].ENVIRONMENT: None for row in rows}
        document: dict[str, Any] = {
            "conditions": conditions(
                made,
                self._environments,
                num_threads=self.settings.num_threads,
                arguments=self.settings.arguments,
            )
        }
        requests = self._requests("round", self.settings.num_rounds + 1)
        processes = shared_processes(
            {row: (self._process(row), known[row.name]["facts"]["peak_rss_mib"]) for row in rows}
        )
        room_mib = (read_platform().free_memory_mib or 0) - SPARE_MIB
        warm_up = self._requests("warm-up", 1)[0] | {"max_new_tokens": 2}
        with Workers(self._start, processes, warm_up, room_mib=room_mib) as workers:
            reasons = self._unfit(rows, workers, requests[0])
            rows = [row for row in rows if row.name not in reasons]
            workers.keep(rows)
            answers = measure(rows, workers.ask, requests[1:])
        document["reasons"] = reasons
        document["answers"] = {
            name: [asdict(each) for each in given] for name, given in answers.items()
        }
        _write(self._rounds, document)

    def result(self) -> Result:
        """Return what the files hold."""
        alone, rounds = _read(self._agreement), _read(self._rounds)
        found = Result(conditions=rounds.get("conditions", {}))
        for row in self.rows:
            entry = alone.get(row.name, {})
            reason = entry.get("reason") or rounds.get("reasons", {}).get(row.name)
            if reason:
                found.reasons[row.name] = reason
            if "answers" in entry:
                found.checks[row.name] = [Answer(**each) for each in entry["answers"]]
                found.facts[row.name] = entry["facts"]
            if row.name in rounds.get("answers", {}):
                found.answers[row.name] = [Answer(**each) for each in rounds["answers"][row.name]]
        if "answers" in alone.get(REFERENCE, {}):
            expected = [Answer(**each) for each in alone[REFERENCE]["answers"]]
            found.agreement = {
                row.name: agreement(found.checks[row.name], expected)
                for row in self.rows
                if row.keep_ratio is None and row.name in found.checks
            }
        return found

    def _unfit(
        self, rows: Sequence[Row], workers: Workers, request: dict[str, Any]
    ) -> dict[str, str]:
        """Ask all rows once, and return why some take no part in the rounds, by row."""
        reasons = {}
        for row in rows:
            try:
                answer = workers.ask(row, request)
            except PeerError as error:
                reasons[row.name] = str(error)
                continue
            print(f"  first    {row.name:46} first token {answer.ttft_ms:9.1f} ms", flush=True)
            if answer.ttft_ms > self.settings.longest_ms:
                reasons[row.name] = f"first token after {answer.ttft_ms / 1e3:.0f} s, so no rounds"
        return reasons

    def _prepare_files(self, row: Row) -> None:
        peer, _ = self._modules[row]
        print(f"{self.name}: {peer} {row.files}", flush=True)
        log = self._mark(row).with_suffix(".log")
        shutil.rmtree(self._files(row), ignore_errors=True)  # of a step that was stopped
        with log.open("w") as output:
            status = subprocess.run(  # noqa: S603 - our own command line
                self._worker(row, "prepare"),
                check=False,
                env=Worker.environment(self.settings.num_threads),
                stdout=output,
                stderr=output,
            ).returncode
        _write(self._mark(row), _last_line(log) if status else None)

    def _asked_alone(self, row: Row) -> dict[str, Any]:
        worker = self._start(row)
        try:
            requests = self._requests("check", NUM_CHECKS)
            if row.name == REFERENCE:
                requests = [each | {"num_choices": NUM_CHOICES} for each in requests]
            given = [worker.ask(each | {"keep_ratio": row.keep_ratio}) for each in requests]
            facts = worker.facts | {"peak_rss_mib": round(worker.rss_mib())}
        finally:
            worker.close()
        ttft_ms = min(answer.ttft_ms for answer in given)
        print(f"  alone    {row.name:46} first token {ttft_ms:9.1f} ms", flush=True)
        return {"facts": facts, "answers": [asdict(answer) for answer in given]}

    def _start(self, row: Row) -> Worker:
        """Start the process of a row's variant.

        Raises:
            PeerError: if it is not prepared, could not be prepared, or does not start.
        """
        mark = self._mark(row)
        if not mark.exists():
            raise PeerError("not prepared")
        if failure := json.loads(mark.read_text(encoding="utf-8")):
            raise PeerError(failure)
        log = self._folder / f"{self._process(row)}.answers.log"
        command = [*self._worker(row, "answer"), str(self.settings.num_threads)]
        return Worker(command, num_threads=self.settings.num_threads, log=log)

    def _worker(self, row: Row, step: str) -> list[str]:
        peer, module = self._modules[row]
        python = environments.interpreter(module.ENVIRONMENT, self._environments)
        worker = [str(python), "-m", "compare_peers.worker", step]
        return [*worker, peer, row.variant, str(self._checkpoint), str(self._files(row))]

    def _process(self, row: Row) -> str:
        peer, _ = self._modules[row]
        return f"{peer}-{row.variant}".replace(" ", "-")

    def _files(self, row: Row) -> Path:
        peer, _ = self._modules[row]
        return self._folder / f"{peer}-{row.files}"

    def _mark(self, row: Row) -> Path:
        return self._files(row).with_suffix(".done")

    def _requests(self, part: str, number: int) -> list[dict[str, Any]]:
        pictures = self.settings.out / "pictures"
        side = MODELS[self.name].image_side
        return [
            {"image": str(path), "question": question, "max_new_tokens": self.settings.num_tokens}
            for path, question in questions.ask(pictures, part, side=side, number=number)
        ]


def _read(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write(path: Path, document: Any) -> None:
    """Write a JSON file; one that is there is whole."""
    write_whole(path, json.dumps(document, indent=1).encode() + b"\n")


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), f"failed without a word; see {log}")
