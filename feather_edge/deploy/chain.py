"""The whole chain, the main path: fit, export, build-engine, verify, bench, and a report.

Everything is done in a folder beside the bundle, which takes the bundle's place in the end: until
then an earlier bundle stays as it is, and a chain that was interrupted goes on where it was.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from feather_edge.deploy.deployment import Watch, Work
from feather_edge.deploy.ledger import open_ledger
from feather_edge.deploy.report import DeployReport, describe
from feather_edge.deploy.stages import BENCH, BUILD_ENGINE, EXPORT, FIT, VERIFY
from feather_edge.deploy.state import PAGE_FILE, Cost
from feather_edge.deploy.web_page import copy_page, write_page
from feather_edge.errors import FeatherEdgeError, RequestError
from feather_edge.runtime.memory import peak_rss_mib, reset_peak_rss
from feather_edge.staging import unfinished_bundle

if TYPE_CHECKING:
    from pathlib import Path

    from feather_edge.deploy.deployment import Deployment, Stage
    from feather_edge.deploy.ledger import Ledger
    from feather_edge.deploy.state import StageName
    from feather_edge.staging import Unfinished

__all__ = ["deploy"]


def deploy(
    deployment: Deployment,
    *,
    watch: Watch | None = None,
    from_stage: StageName | None = None,
    page: Path | None = None,
) -> DeployReport:
    """Take a checkpoint all the way to a bundle that is proven on its target.

    A stage that would only repeat itself is left out. Where this machine is not the target, what
    only the target can do is left to do, and recorded as such.

    Args:
        deployment: what is asked for.
        watch: told what happens; None for nobody.
        from_stage: take the stages before it as they are recorded, and do it and all later ones
            again. The checkpoint is read only if it is ``fit`` or ``export``.
        page: where to write the page too, beside ``report.html`` in the bundle.

    Raises:
        FeatherEdgeError: what a stage raises, with its name before; what stands at the output
            stays as it was, and the same call goes on with that stage.
        BundleError: if the output is of another origin, or something cannot be written.
        RequestError: if a stage before ``from_stage`` is not recorded, or the page cannot be
            written.
    """
    if page is not None and not page.parent.is_dir():
        raise RequestError(f"report {page} cannot be written: {page.parent} is no folder")
    with unfinished_bundle(deployment.output) as unfinished:
        chain = _Chain(deployment, unfinished, watch or Watch(), from_stage)
        # 1. Refuse what cannot fit before anything is downloaded, exported or built.
        chain.do(FIT)
        # 2. Checkpoint to graphs; 3. graphs to engines, where the target has such.
        chain.do(EXPORT)
        chain.do(BUILD_ENGINE)
        # 4. Does the target compute what the graphs say, 5. and how long does it take?
        chain.do(VERIFY)
        chain.do(BENCH)
        # 6. A page to send to a colleague; then all of it takes the place of what was there.
        report = chain.publish()
    if page is not None:
        copy_page(deployment.output, page)
    return report


class _Chain:
    """Does the stages that are due, one after the other, and takes down how each ended."""

    def __init__(
        self,
        deployment: Deployment,
        unfinished: Unfinished,
        watch: Watch,
        from_stage: StageName | None,
    ) -> None:
        self._deployment = deployment
        self._unfinished = unfinished
        self._watch = watch
        self._ledger: Ledger = open_ledger(deployment, unfinished.folder, from_stage=from_stage)

    def do(self, stage: Stage) -> None:
        """Do a stage if it is due."""
        if self._ledger.is_before_start(stage.name):
            self._watch.on_stage(stage.name, "taken as it is recorded")
            return
        try:
            self._do_if_due(stage)
        except FeatherEdgeError as error:
            raise type(error)(f"{stage.name}: {error}{self._unfinished.remark}") from error

    def _do_if_due(self, stage: Stage) -> None:
        unfinished, ledger = self._unfinished, self._ledger
        work = self._work(unfinished.folder)
        inputs = stage.inputs(work)
        why = ledger.why_due(stage, inputs, work)
        self._watch.on_stage(stage.name, "up to date" if why is None else f"runs, {why}")
        if why is None:
            return
        # An export makes a bundle of its own, so there is nothing to go on with.
        folder = unfinished.staging if stage in (FIT, EXPORT) else unfinished.begin()
        reset_peak_rss()
        start_s = time.perf_counter()
        outcome = stage.run(self._work(folder))
        cost = Cost(
            seconds=round(time.perf_counter() - start_s, 3),
            peak_rss_mib=round(outcome.peak_rss_mib or peak_rss_mib(), 1),
        )
        ledger.enter(stage, inputs, outcome, cost)
        if unfinished.is_begun:
            ledger.write(folder)

    def _work(self, folder: Path) -> Work:
        return Work(
            deployment=self._deployment,
            folder=folder,
            state=self._ledger.state,
            watch=self._watch,
        )

    def publish(self) -> DeployReport:
        """Put what was done in place and return the report; if nothing was, nothing changes."""
        report = describe(self._ledger)
        if self._ledger.new or not (self._unfinished.folder / PAGE_FILE).is_file():
            folder = self._unfinished.begin()
            self._ledger.write(folder)
            write_page(folder, report)
            self._unfinished.publish()
        return report
