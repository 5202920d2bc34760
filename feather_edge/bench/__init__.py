"""How long a request takes, and how long it would have to take at least.

``benchmark`` is what ``feather-edge bench`` runs. ``measure`` alone times any number of prunings
against one another in an opened session::

    with Session.open("bundle") as session:
        timings = measure(session, {"half": Pruning(keep_ratio=(0.5,))}, scene_requests(seed=0))
    print(summarise(timings["half"]).ttft_ms)
"""

from __future__ import annotations

from feather_edge.bench.benchmark import benchmark
from feather_edge.bench.measure import Timing, measure
from feather_edge.bench.report import Settings
from feather_edge.bench.requests import Request, picture_requests, scene_requests
from feather_edge.bench.summary import Summary, summarise

__all__ = [
    "Request",
    "Settings",
    "Summary",
    "Timing",
    "benchmark",
    "measure",
    "picture_requests",
    "scene_requests",
    "summarise",
]
