"""Tables for people: on a terminal and in a pipe alike, nothing is cut off."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["mebibytes", "print_table", "span"]


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str | int | float]]
) -> None:
    """Print rows under a title; numbers stand on the right, names are taken literally."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    body = [tuple(row) for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        is_number = any(not isinstance(row[index], str) for row in body)
        table.add_column(Text(column), justify="right" if is_number else "left", overflow="fold")
    for row in body:
        table.add_row(
            *(Text(f"{cell:.2f}" if isinstance(cell, float) else str(cell)) for cell in row)
        )
    console = Console(width=max(100, shutil.get_terminal_size().columns), highlight=False)
    console.print(Text(title, style="bold underline"))
    console.print(table)
    console.print()


def mebibytes(num_bytes: int) -> float:
    """Return a size in MiB."""
    return num_bytes / 2**20


def span(layers: tuple[int, int] | None) -> str:
    """Return ``first-last``, or a dash for what has no layers."""
    return "-" if layers is None else f"{layers[0]}-{layers[1]}"
