"""``feather-edge tune``: search, if accuracy is asked for, then measure, then choose."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import msgspec

from feather_edge.bundle import Bundle
from feather_edge.errors import RequestError
from feather_edge.evaluate.comparison import RECIPE
from feather_edge.runtime.backend_choice import BackendTable, write_backend_table
from feather_edge.runtime.calibration import Calibration, write_calibration
from feather_edge.runtime.session import Session
from feather_edge.tune.backends import measure_backends
from feather_edge.tune.ladder import KEEP_RATIOS, ladder, measure_ladder, own_method
from feather_edge.tune.search import Search, search

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from feather_edge.bench.requests import Requests
    from feather_edge.tune.search import Requirement

    OnProgress = Callable[[int, int], None]

__all__ = ["TuneReport", "tune"]


class TuneReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything ``feather-edge tune`` prints.

    Attributes:
        bundle: the one that was measured.
        method: whose ladder it is.
        calibration_file: where it was written.
        calibration: what was measured.
        backends: which were timed to choose among; None where one was asked for.
        search: what was tried for the accuracy, None where only time was asked for.
        budget: what the budget leads to, as a request with this deadline would have it.
    """

    bundle: str
    method: str
    calibration_file: str
    calibration: Calibration
    backends: BackendTable | None
    search: Search | None
    budget: dict[str, Any] | None


def tune(
    bundle_folders: Sequence[Path],
    requests: Requests,
    *,
    budget_ttft_ms: float | None = None,
    requirement: Requirement | None = None,
    methods: Sequence[str] | None = None,
    keep_ratios: Sequence[float] | None = None,
    backend: str = "auto",
    target: str | None = None,
    warmup: int = 3,
    repeat: int = 20,
    output: Path | None = None,
    command: str = "feather-edge tune",
    on_progress: OnProgress | None = None,
) -> TuneReport:
    """Measure a ladder of keep ratios on this device and write it into the bundle.

    Args:
        bundle_folders: one bundle; with a requirement several, whose stages differ.
        requests: what is asked while the clock runs.
        budget_ttft_ms: time to the first token to choose for.
        requirement: what must be kept of the accuracy; only rungs that keep it are measured.
        methods: to search among; None takes the bundle's own. Without a requirement just one.
        keep_ratios: rungs; None takes ``KEEP_RATIOS``. All, 1, is always among them.
        backend: what runs the graphs; ``auto`` times those that are installed, and writes which
            is the fastest into the bundle, where ``auto`` finds it.
        target: whose engines.
        warmup: rounds before the first that counts.
        repeat: rounds that count.
        output: folder of the answers of a search, to go on from; None forgets them.
        command: that is running, for whoever has to repeat it.
        on_progress: called with the samples done of a comparison, then with the requests measured.

    Raises:
        RequestError: if nothing is asked for, or it cannot be had.
    """
    bundles = [Bundle.open(folder) for folder in bundle_folders]
    methods = [own_method(bundles[0])] if methods is None else list(methods)
    ratios = sorted({1.0, *(keep_ratios or KEEP_RATIOS)}, reverse=True)
    _require_sense(bundles, methods, budget_ttft_ms, requirement)
    repeats: dict[str, Any] = {"warmup": warmup, "repeat": repeat, "command": command}
    # 1. Which bundle, method and ratios keep enough.
    found: Search | None = None
    bundle, method, accuracy = bundles[0], methods[0], {}
    if requirement is not None:
        with _kept_or_scratch(output) as answers:
            found = search(
                bundles,
                requirement,
                methods=methods,
                keep_ratios=[ratio for ratio in ratios if ratio < 1],
                output=answers,
                backend=backend,
                target=target,
                on_progress=on_progress,
            )
        method = found.chosen.method
        bundle = next(each for each in bundles if str(each.path) == found.chosen.bundle)
        accuracy = _accepted(found)
        ratios = list(accuracy)
    # 2. Which backend runs it fastest here.
    backends = measure_backends(bundle, requests, **repeats) if backend == "auto" else None
    if backends is not None:
        write_backend_table(bundle.path, backends)
        backend = backends.best
    # 3. How long each of the ratios takes on it.
    rungs = ladder(bundle, method, ratios)
    with Session.open(bundle, backend=backend, target=target) as session:
        calibration = measure_ladder(
            session, rungs, requests, accuracy=accuracy, on_progress=on_progress, **repeats
        )
    file = write_calibration(bundle.path, calibration)
    # 4. What a budget leads to.
    return TuneReport(
        bundle=str(bundle.path),
        method=method,
        calibration_file=str(file),
        calibration=calibration,
        backends=backends,
        search=found,
        budget=None if budget_ttft_ms is None else _choice(calibration, budget_ttft_ms),
    )


@contextmanager
def _kept_or_scratch(output: Path | None) -> Iterator[Path]:
    """Give the folder of a search's answers, one that is forgotten where none is asked for."""
    if output is not None:
        yield output
        return
    with TemporaryDirectory() as scratch:
        yield Path(scratch)


def _choice(calibration: Calibration, budget_ttft_ms: float) -> dict[str, Any]:
    visual = calibration.num_visual_tokens
    return calibration.choose(budget_ttft_ms, num_visual_tokens=visual).to_dict()


def _require_sense(
    bundles: Sequence[Bundle],
    methods: Sequence[str],
    budget_ttft_ms: float | None,
    requirement: Requirement | None,
) -> None:
    if budget_ttft_ms is None and requirement is None:
        raise RequestError("nothing to tune for; give --budget-ttft-ms, --min-accuracy, or both")
    if budget_ttft_ms is not None and not budget_ttft_ms > 0:
        raise RequestError(f"budget {budget_ttft_ms:g} ms is no time; it must be more than 0")
    if RECIPE in methods:
        raise RequestError("method recipe is one request, no ladder; choose the method it uses")
    if requirement is None and (len(bundles) > 1 or len(methods) > 1):
        raise RequestError(
            f"{len(bundles)} bundles and {len(methods)} methods can only be told apart by their "
            f"accuracy; give --min-accuracy, or one of each"
        )


def _accepted(found: Search) -> dict[float, dict[str, float]]:
    """Return what the accepted ratios of the chosen bundle and method keep, falling."""
    chosen = found.chosen
    kept = {1.0: dict.fromkeys(chosen.kept, 1.0)}
    for each in sorted(found.candidates, key=lambda each: -each.keep_ratio):
        if (each.bundle, each.method) == (chosen.bundle, chosen.method) and each.is_accepted:
            kept[each.keep_ratio] = each.kept
    return kept
