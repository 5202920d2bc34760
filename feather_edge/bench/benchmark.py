"""``feather-edge bench``: how long a bundle takes here, unpruned and pruned."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from feather_edge.bench.energy import open_meters
from feather_edge.bench.environment import describe_environment
from feather_edge.bench.floor import static_floor
from feather_edge.bench.measure import measure
from feather_edge.bench.rates import MachineRates
from feather_edge.bench.report import Opened, Report, compare
from feather_edge.bench.summary import summarise
from feather_edge.runtime.memory import peak_rss_mib
from feather_edge.runtime.session import Session

if TYPE_CHECKING:
    from feather_edge.bench.measure import OnProgress
    from feather_edge.bench.report import Settings
    from feather_edge.bench.requests import Requests
    from feather_edge.bundle import Bundle

__all__ = ["benchmark"]

UNPRUNED, PRUNED = "unpruned", "pruned"


def benchmark(
    bundle: Bundle,
    requests: Requests,
    settings: Settings,
    *,
    on_progress: OnProgress | None = None,
) -> Report:
    """Time requests to a bundle, unpruned and pruned in turn, beside what they cost at least.

    Args:
        bundle: an opened bundle.
        requests: what to ask; see ``feather_edge.bench.requests``.
        settings: what is measured, and how.
        on_progress: called after each request.

    Raises:
        RequestError: if a request does not fit the bundle.
        BackendError: if the backend is missing or fails.
    """
    with (
        Session.open(
            bundle.path,
            backend=settings.backend,
            target=settings.target,
            num_threads=settings.num_threads,
            cuda_graphs=settings.cuda_graphs,
            cache_images=0,  # a request pays for all of its picture and prompt
            cache_prefixes=0,
        ) as session,
        open_meters(session.backend.device) as meters,
    ):
        environment = describe_environment(
            bundle,
            session.backend,
            target=settings.target,
            num_threads=settings.num_threads,
            energy_sensors=meters.names,
        )
        # 1. What is compared; a request that prunes nothing says why.
        pruning = settings.pruning
        prunings = {UNPRUNED: dataclasses.replace(pruning, criterion="none", pre_criterion="none")}
        (first,) = requests(0, 1)
        probe = session.generate(first.image, first.prompt, pruning=pruning, max_new_tokens=1)
        if probe.reason is None:
            prunings[PRUNED] = pruning
        # 2. What requests take here, and what the session needs for them.
        memory = _Memory(session, on_progress)
        timings = measure(
            session,
            prunings,
            requests,
            warmup=settings.warmup,
            repeat=settings.repeat,
            max_new_tokens=settings.max_new_tokens,
            joules=meters.joules if meters.names else None,
            on_progress=memory,
        )
        opened = memory.opened()
        # 3. What they would take at least; later, since measuring rates needs memory of its own.
        unpruned = summarise(timings[UNPRUNED])
        pruned = summarise(timings[PRUNED]) if PRUNED in timings else None
        rates = MachineRates(session.backend)
        floor = static_floor(bundle, first.image, unpruned, pruned, rates)
    return Report(
        environment=environment,
        settings=settings,
        floor=floor,
        session=opened,
        unpruned=unpruned,
        pruned=pruned,
        ratio=compare(pruned, unpruned, floor),
        reason=probe.reason,
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
            notes=self._session.notes,
        )
