"""Progress bars on stderr, on a terminal only."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from feather_edge.deploy.deployment import Watch
    from feather_edge.deploy.state import StageName
    from feather_edge.engines.process import OnPhase
    from feather_edge.export.writer import Progress as OnProgress

__all__ = ["build_progress", "counting_bar", "deploy_watch", "progress_bar"]


@contextmanager
def progress_bar() -> Iterator[OnProgress | None]:
    """Yield a function that draws the progress of a graph, or None where nobody watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("")

        def draw(label: str, num_done_bytes: int, num_total_bytes: int) -> None:
            progress.update(
                task, description=label, completed=num_done_bytes, total=num_total_bytes
            )

        yield draw


@contextmanager
def build_progress() -> Iterator[OnPhase | None]:
    """Yield a function that draws a bar for each engine that is being built, or None."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def draw(graph: str, phase: str, num_done: int, num_steps: int) -> None:
            if graph not in tasks:
                tasks[graph] = progress.add_task(graph)
            progress.update(
                tasks[graph],
                description=f"{graph}: {phase}",
                completed=num_done,
                total=num_steps or None,
            )

        yield draw


@contextmanager
def counting_bar(label: str) -> Iterator[Callable[[int, int], None] | None]:
    """Yield a function that draws ``done`` of ``total`` with the time left, or None."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeLeft())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=None)

        def draw(num_done: int, num_total: int) -> None:
            progress.update(task, completed=num_done, total=num_total)

        yield draw


@contextmanager
def deploy_watch() -> Iterator[Watch]:
    """Yield a watch that says what becomes of each stage, with a bar where somebody watches."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from feather_edge.deploy.deployment import Watch

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("")

        class Bars(Watch):
            def on_stage(self, name: StageName, what: str) -> None:
                console.print(f"{name}: {what}", markup=False)
                bar.update(task, description=name, completed=0, total=None)

            def on_step(self, label: str, num_done: int, num_steps: int) -> None:
                bar.update(task, description=label, completed=num_done, total=num_steps or None)

        yield Bars()
