"""``feather-edge bench``: how long a bundle takes here, unpruned and pruned."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from feather_edge.bench.energy import open_meters
from feather_edge.bench.environment import describe_environment
from feather_edge.bench.floor import static_floor
from feather_edge.bench.measure import DEFAULT_REPEAT, DEFAULT_WARMUP, measure
from feather_edge.bench.rates import MachineRates
from feather_edge.bench.report import Opened, Report, Settings, compare
from feather_edge.bench.summary import summarise
from feather_edge.runtime.memory import peak_rss_mib
from feather_edge.runtime.session import Session

if TYPE_CHECKING:
    from feather_edge.bench.measure import OnProgress
    from feather_edge.bench.requests import Requests
    from feather_edge.bundle import Bundle
    from feather_edge.pruning import Pruning

__all__ = ["benchmark"]

UNPRUNED, PRUNED = "unpruned", "pruned"


def benchmark(
    bundle: Bundle,
    requests: Requests,
    *,
    pruning: Pruning,
    backend: str = "auto",
    target: str | None = None,
    num_threads: int | None = None,
    warmup: int = DEFAULT_WARMUP,
    repeat: int = DEFAULT_REPEAT,
    max_new_tokens: int | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """Time requests to a bundle, unpruned and pruned in turn, beside what they cost at least.

    Args:
        bundle: an opened bundle.
        requests: what to ask; see ``feather_edge.bench.requests``.
        pruning: what to keep in the pruned requests.
        backend: what runs the graphs.
        target: whose engines, see ``Session.open``.
        num_threads: of one graph run on the CPU; None is the backend's own choice.
        warmup: rounds before the first that counts.
        repeat: rounds that count.
        max_new_tokens: limit of each answer; None is the bundle's own.
        on_progress: called after each request.

    Raises:
        RequestError: if a request does not fit the bundle.
        BackendError: if the backend is missing or fails.
    """
    with (
        Session.open(
            bundle.path, backend=backend, target=target, num_threads=num_threads
        ) as session,
        open_meters(session.backend.device) as meters,
    ):
        environment = describe_environment(
            bundle,
            session.backend,
            target=target,
            num_threads=num_threads,
            energy_sensors=meters.names,
        )
        # 1. What is compared; a request that prunes nothing says why.
        (first,) = requests(0, 1)
        reason = session.generate(
            first.image, first.prompt, pruning=pruning, max_new_tokens=1
        ).reason
        prunings = {UNPRUNED: dataclasses.replace(pruning, criterion="none", pre_criterion="none")}
        if reason is None:
            prunings[PRUNED] = pruning
        # 2. What requests take here, 3. and what the session needs for them.
        memory = _Memory(session, on_progress)
        timings = measure(
            session,
            prunings,
            requests,
            warmup=warmup,
            repeat=repeat,
            max_new_tokens=max_new_tokens,
            joules=meters.joules if meters.names else None,
            on_progress=memory,
        )
        opened = memory.opened()
        # 4. What they would take at least; later, since measuring rates needs memory of its own.
        unpruned = summarise(timings[UNPRUNED])
        pruned = summarise(timings[PRUNED]) if PRUNED in timings else None
        rates = MachineRates(session.backend)
        floor = static_floor(bundle, first.image, unpruned, pruned, rates)
    return Report(
        environment=environment,
        settings=Settings(
            pruning=None if pruned is None else pruning,
            warmup=warmup,
            repeat=repeat,
            max_new_tokens=max_new_tokens,
        ),
        floor=floor,
        session=opened,
        unpruned=unpruned,
        pruned=pruned,
        ratio=compare(pruned, unpruned, floor),
        reason=reason,
    )


class _Memory:
    """The most device memory that was seen in use."""

    def __init__(self, session: Session, on_progress: OnProgress | None) -> None:
        self._session = session
        self._on_progress = on_progress
        self._peak_bytes: int | None = None

    def __call__(self, num_done: int, num_total: int) -> None:
        """Look, after a request."""
        now = self._session.backend.device_bytes()
        if now is not None:
            self._peak_bytes = max(now, self._peak_bytes or 0)
        if self._on_progress is not None:
            self._on_progress(num_done, num_total)

    def opened(self) -> Opened:
        """Return what the session has needed so far."""
        peak = self._peak_bytes
        return Opened(
            load_ms=self._session.load_ms,
            peak_rss_mib=peak_rss_mib(),
            peak_device_mib=None if peak is None else peak / 2**20,
        )
