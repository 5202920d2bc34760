"""Progress bars on stderr, on a terminal only."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from feather_edge.engines.process import OnPhase
    from feather_edge.export.writer import Progress as OnProgress

__all__ = ["build_progress", "progress_bar"]


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
