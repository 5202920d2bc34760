"""What a peer's module declares: its environment, and the rows it gives a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["32", "16", "8"]
"""Bits of the weights: rows of one are comparable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A virtual environment.

    Attributes:
        name: of its folder.
        packages: installed with what they depend on.
        bare: installed after, without: they would replace what is there.
        sources: source distributions that are unpacked, not built.
    """

    name: str
    packages: tuple[str, ...]
    bare: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the report: a variant asked in one way.

    Attributes:
        name: as the report has it.
        variant: files and settings of one process; rows of one variant share the process. What
            stands before a space is of the files alone.
        precision: bits of its weights.
        keep_ratio: share of the visual tokens that are left in the end; None prunes nothing.
        is_ours: whether it is feather-edge.
        is_timed: whether it takes part in the rounds; if not, it only tells whether it agrees.
        differs: what it is known to compute otherwise than the reference, besides rounding.
    """

    name: str
    variant: str
    precision: Precision
    keep_ratio: float | None = None
    is_ours: bool = False
    is_timed: bool = True
    differs: str = ""

    @property
    def files(self) -> str:
        """What the row's files are called."""
        return self.variant.partition(" ")[0]
