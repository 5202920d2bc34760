"""Contenders as processes, and the order in which they take their turns."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from compare_peers.contenders import Row

TOOLS = Path(__file__).parents[1]


class PeerError(Exception):
    """A peer could not be prepared or did not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a contender says of one request.

    Attributes:
        token_ids: greedy tokens.
        num_prompt_tokens: with visual tokens, before anything is pruned (OpenVINO GenAI: after).
        ttft_ms: from a decoded picture (llama.cpp and onnxruntime-genai: from the file's bytes)
            and a question to the first token.
        tpot_ms: mean gap of later tokens.
        vision_ms: of the vision encoder, preprocessing included; None where nobody tells.
        prefill_ms: of the decoder, where it is told apart.
        num_visual_tokens: of the picture; None where nobody tells.
        num_kept: visual tokens left after each pruning stage, where it is told.
        choices: for each token (id, distance) of the best next tokens, the best first; distances
            of their logits to its own are in standard deviations of the logits. Of the reference,
            when it is asked for them.
    """

    token_ids: list[int]
    num_prompt_tokens: int | None
    ttft_ms: float
    tpot_ms: float
    vision_ms: float | None
    prefill_ms: float | None = None
    num_visual_tokens: int | None = None
    num_kept: list[int] | None = None
    choices: list[list[tuple[int, float]]] | None = None


class Worker:
    """A contender's process; idle while others have their turn."""

    def __init__(self, command: Sequence[str], *, num_threads: int, log: Path) -> None:
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=self.environment(num_threads),
            )
        try:
            self.facts: dict[str, Any] = self._read()["ready"]
        except PeerError:
            self.close()
            raise

    @staticmethod
    def environment(num_threads: int) -> dict[str, str]:
        """Return the environment variables of a contender's process."""
        return os.environ | {
            "OMP_NUM_THREADS": str(num_threads),
            # Threads that wait for work must not take it from others.
            "OMP_WAIT_POLICY": "PASSIVE",
            "GOMP_SPINCOUNT": "0",
            "KMP_BLOCKTIME": "0",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": str(TOOLS),
        }

    def ask(self, request: dict[str, Any]) -> Answer:
        """Send a request and wait for its answer.

        Raises:
            PeerError: if there is none.
        """
        assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Answer(**self._read())

    def rss_mib(self) -> float:
        """Return the largest resident memory so far."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        (line,) = (each for each in status.splitlines() if each.startswith("VmHWM"))
        return int(line.split()[1]) / 1024

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise PeerError(f"ended with status {self._process.returncode}; see {self._log}")
        document: dict[str, Any] = json.loads(line)
        if "error" in document:
            raise PeerError(document["error"])
        return document


def turns(rows: Sequence[Row], num_rounds: int) -> list[tuple[int, Row]]:
    """Return (round, row) in the order of measurement: A B C, then B C A, and so on.

    Every round asks each row once, so all rows see the same drift of the machine's speed; the
    start moves on, so none follows the same neighbour's warm caches at the same place each time.
    """
    order = []
    for number in range(num_rounds):
        start = number % len(rows) if rows else 0
        order += [(number, row) for row in (*rows[start:], *rows[:start])]
    return order


def measure(
    rows: Sequence[Row],
    ask: Callable[[Row, dict[str, Any]], Answer],
    requests: Sequence[dict[str, Any]],
) -> dict[str, list[Answer]]:
    """Ask every row every request, in turn.

    Args:
        rows: what to measure.
        ask: asks a row one request.
        requests: one a round; each has another picture and question.

    Returns:
        Answers by row, one a round.
    """
    answers: dict[str, list[Answer]] = {row.name: [] for row in rows}
    for number, row in turns(rows, len(requests)):
        answer = ask(row, requests[number])
        answers[row.name].append(answer)
        print(
            f"  round {number + 1}  {row.name:46} first token {answer.ttft_ms:9.1f} ms, "
            f"further {answer.tpot_ms:7.2f} ms",
            flush=True,
        )
    return answers
