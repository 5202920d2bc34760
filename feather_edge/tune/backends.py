"""The backends that can run a bundle's graphs here, timed against one another."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from feather_edge.errors import BackendError
from feather_edge.runtime.backend_choice import (
    FORMAT_VERSION,
    BackendTable,
    BackendTime,
    best_first,
)
from feather_edge.runtime.backend_names import GRAPH_BACKENDS
from feather_edge.runtime.fingerprint import fingerprint
from feather_edge.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feather_edge.bench.requests import Requests
    from feather_edge.bundle import Bundle
    from feather_edge.runtime.fingerprint import Fingerprint
    from feather_edge.runtime.result import Result

__all__ = ["measure_backends"]

NUM_TOKENS = 9
"""Of each answer, where the model says so many: the first, and some whose mean time is taken."""


def measure_backends(
    bundle: Bundle, requests: Requests, *, warmup: int, repeat: int, command: str
) -> BackendTable:
    """Time short answers on every backend that opens the bundle, in turn, one request a round.

    Args:
        bundle: whose graphs; requests prune as its recipe has it.
        requests: see ``feather_edge.bench.requests``.
        warmup: rounds before the first that counts.
        repeat: rounds that count.
        command: that is running, for whoever has to repeat it.

    Raises:
        BackendError: if no backend opens the bundle: the error of the first.
    """
    with ExitStack() as stack:
        sessions: dict[str, Session] = {}
        errors: list[BackendError] = []
        for name in (name for name in GRAPH_BACKENDS if name != "auto"):
            opened = _opened(bundle, name)
            if isinstance(opened, Session):
                sessions[name] = stack.enter_context(opened)
            else:
                errors.append(opened)
        if not sessions:
            raise errors[0]
        answers: dict[str, list[Result]] = {name: [] for name in sessions}
        names = list(sessions)
        num_tokens = _num_tokens(sessions[names[0]], requests)
        for number in range(warmup + repeat):
            (request,) = requests(number, 1)
            for name in names if number % 2 else reversed(names):
                result = sessions[name].generate(
                    request.image, request.prompt, max_new_tokens=num_tokens
                )
                if number >= warmup:
                    answers[name].append(result)
        times = [
            _time(fingerprint(bundle, session.backend), answers[name])
            for name, session in sessions.items()
        ]
    return BackendTable(
        format_version=FORMAT_VERSION,
        command=command,
        measured_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        warmup=warmup,
        repeat=repeat,
        times=best_first(times),
    )


def _num_tokens(session: Session, requests: Requests) -> int:
    """Return how many tokens each answer may have: fewer where a prompt almost fills the model."""
    (first,) = requests(0, 1)
    probe = session.generate(first.image, first.prompt, max_new_tokens=1)
    return min(NUM_TOKENS, session.bundle.manifest.max_positions - probe.num_prompt_tokens)


def _time(measured: Fingerprint, answers: Sequence[Result]) -> BackendTime:
    tpot_ms = [answer.tpot_ms for answer in answers if answer.tpot_ms is not None]
    return BackendTime(
        fingerprint=measured,
        ttft_ms=statistics.median(answer.ttft_ms for answer in answers),
        tpot_ms=statistics.median(tpot_ms) if tpot_ms else None,
    )


def _opened(bundle: Bundle, name: str) -> Session | BackendError:
    """Return a session, or why there is none: a package is missing, or lacks an operator."""
    try:
        return Session.open(bundle, backend=name)
    except BackendError as error:
        return error
