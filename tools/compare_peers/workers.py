"""Contenders' processes, as many at once as memory has room for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from compare_peers.contenders import Row
    from compare_peers.runner import Answer, Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What answers a row.

    Attributes:
        name: rows of one name share the process.
        memory_mib: the largest that it was seen to hold.
    """

    name: str
    memory_mib: float


def shared_processes(rows: Mapping[Row, tuple[str, float]]) -> dict[Row, Process]:
    """Return the process of each row.

    Args:
        rows: name of the process, and the most MiB that it held when it answered this row.
    """
    largest: dict[str, float] = {}
    for name, memory_mib in rows.values():
        largest[name] = max(memory_mib, largest.get(name, 0.0))
    return {row: Process(name=name, memory_mib=largest[name]) for row, (name, _) in rows.items()}


class Workers:
    """Keeps processes between their turns, and ends one where another needs its memory.

    In a round of turns that one is needed last which had its turn last, so it is ended first. A
    process that starts, or starts again, answers one question that does not count in the way of
    each of its rows: the first of a length may take longer.

    Args:
        start: starts the process of a row.
        processes: of each row.
        warm_up: the question that does not count.
        room_mib: for all of them.
    """

    def __init__(
        self,
        start: Callable[[Row], Worker],
        processes: Mapping[Row, Process],
        warm_up: dict[str, Any],
        *,
        room_mib: float,
    ) -> None:
        self._start = start
        self._processes = processes
        self._warm_up = warm_up
        self._room_mib = room_mib
        self._running: dict[Process, Worker] = {}  # whose turn was last comes last

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.keep(())

    def ask(self, row: Row, request: dict[str, Any]) -> Answer:
        """Ask a row's process, which is started where it does not run.

        Raises:
            PeerError: if it does not start or answer.
        """
        process = self._processes[row]
        if process in self._running:
            worker = self._running[process] = self._running.pop(process)
        else:
            self._make_room(process.memory_mib)
            worker = self._running[process] = self._start(row)
            for keep_ratio in self._keep_ratios(process):
                worker.ask(self._warm_up | {"keep_ratio": keep_ratio})
        return worker.ask(request | {"keep_ratio": row.keep_ratio})

    def keep(self, rows: Iterable[Row]) -> None:
        """End all processes but those of ``rows``."""
        kept = {self._processes[row] for row in rows}
        for process in [each for each in self._running if each not in kept]:
            self._running.pop(process).close()

    def _keep_ratios(self, process: Process) -> list[float | None]:
        return [row.keep_ratio for row, each in self._processes.items() if each == process]

    def _make_room(self, needed_mib: float) -> None:
        used_mib = sum(process.memory_mib for process in self._running)
        while self._running and used_mib + needed_mib > self._room_mib:
            process, worker = self._running.popitem()
            print(f"  no room  {process.name} ends, and starts again at its turn", flush=True)
            worker.close()
            used_mib -= process.memory_mib
