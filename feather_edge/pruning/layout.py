"""Where the visual tokens are among the rows of a sequence, before and after pruning.

Letters: S rows still alive, V visual tokens of the whole prompt.

A prompt is text with one *span* of visual tokens per image, or per tile of one. Pruning removes
visual rows only and moves nothing: kept rows stay in order and keep the position they had in the
full prompt, because shuffled positions cost FEATHER most of its localisation (paper, table A3).

Rows also carry what the user said of them: protected rows are kept and forbidden rows pruned at
every stage, whatever the criterion.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from feather_edge.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

TEXT = -1
"""Span number of a row that is no visual token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualSpan:
    """A raster of visual tokens in the prompt: an image, or one tile of it.

    Attributes:
        start: row of the first token.
        height: rows of the raster.
        width: columns of the raster.
        row_gap: rows of the prompt after each raster row that are text, such as newlines.
        image: number of the image, from 1.
    """

    start: int
    height: int
    width: int
    row_gap: int = 0
    image: int = 1

    def __post_init__(self) -> None:
        if self.start < 0 or self.height < 1 or self.width < 1 or self.row_gap < 0:
            raise RequestError(f"visual span {self} must start at 0 or later and not be empty")

    @property
    def end(self) -> int:
        """Row after the span's last, gaps included."""
        return self.start + self.height * (self.width + self.row_gap)

    @property
    def positions(self) -> NDArray[np.int64]:
        """Position in the unpruned prompt of each token, in raster order."""
        step = self.width + self.row_gap
        rows = self.start + step * np.arange(self.height, dtype=np.int64)
        return (rows[:, None] + np.arange(self.width)).ravel()

    def raster(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the raster index of each position, -1 where it is none of the span's tokens."""
        row, column = np.divmod(positions - self.start, self.width + self.row_gap)
        is_token = (row >= 0) & (row < self.height) & (column < self.width)
        return np.where(is_token, row * self.width + column, -1)

    @property
    def num_tokens(self) -> int:
        """Number of visual tokens in the span."""
        return self.height * self.width


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The rows still alive.

    Attributes:
        spans: the rasters of visual tokens in the unpruned prompt.
        positions: [S] in the unpruned prompt, ascending.
        is_protected: [S], visual tokens that every stage keeps.
        is_forbidden: [S], visual tokens that no stage keeps; disjoint from the protected.
        angles: [rows of the unpruned prompt, Dh/2], rotary angles, for criteria that look at them.
    """

    spans: tuple[VisualSpan, ...]
    positions: NDArray[np.int64]
    is_protected: NDArray[np.bool_]
    is_forbidden: NDArray[np.bool_]
    angles: NDArray[np.float64] | None = None

    @classmethod
    def full(
        cls,
        num_rows: int,
        spans: Sequence[VisualSpan],
        *,
        angles: NDArray[np.float64] | None = None,
    ) -> Layout:
        """Return the layout of an unpruned prompt of ``num_rows`` rows.

        Raises:
            RequestError: if the spans overlap, are not in order, or leave the prompt.
        """
        end = 0
        for span in spans:
            if span.start < end or span.end > num_rows:
                raise RequestError(
                    f"visual span {span} must lie within the prompt of {num_rows} rows, after the "
                    f"span before it, which ends at {end}"
                )
            end = span.end
        return cls(
            spans=tuple(spans),
            positions=np.arange(num_rows, dtype=np.int64),
            is_protected=np.zeros(num_rows, np.bool_),
            is_forbidden=np.zeros(num_rows, np.bool_),
            angles=angles,
        )

    def with_regions(
        self, *, protected: NDArray[np.bool_], forbidden: NDArray[np.bool_]
    ) -> Layout:
        """Return the layout with the rows [S] that the user protects and forbids."""
        return replace(self, is_protected=protected, is_forbidden=forbidden)

    @property
    def num_rows(self) -> int:
        """S, the rows still alive."""
        return len(self.positions)

    @property
    def num_positions(self) -> int:
        """Length of the unpruned prompt. Only visual tokens are ever pruned."""
        ends = [span.end for span in self.spans[-1:]]
        return max([*ends, int(self.positions[-1]) + 1])

    @property
    def num_visual_tokens(self) -> int:
        """Visual tokens of the whole prompt, before any pruning."""
        return sum(span.num_tokens for span in self.spans)

    @cached_property
    def span_of_row(self) -> NDArray[np.int64]:
        """[S]: number of the span a row belongs to, ``TEXT`` for text."""
        owner = np.full(self.num_rows, TEXT, np.int64)
        for number, span in enumerate(self.spans):
            owner[span.raster(self.positions) >= 0] = number
        return owner

    @property
    def is_visual(self) -> NDArray[np.bool_]:
        """[S]: which rows are visual tokens."""
        visual: NDArray[np.bool_] = self.span_of_row != TEXT
        return visual

    @property
    def num_kept(self) -> int:
        """Visual tokens still alive."""
        return int(np.count_nonzero(self.is_visual))

    def rows(self, span: int) -> NDArray[np.int64]:
        """Return the rows of a span that are still alive, ascending."""
        return np.flatnonzero(self.span_of_row == span)

    def raster(self, span: int) -> NDArray[np.int64]:
        """Return the raster index within its span of each row that ``rows(span)`` lists."""
        return self.spans[span].raster(self.positions[self.rows(span)])

    @property
    def kept_indices(self) -> NDArray[np.int64]:
        """Indices into the prompt's visual tokens (all images in a row) that are still alive."""
        offset, kept = 0, [np.empty(0, np.int64)]
        for number, span in enumerate(self.spans):
            kept.append(self.raster(number) + offset)
            offset += span.num_tokens
        return np.concatenate(kept)

    def keep(self, kept_rows: NDArray[np.int64]) -> Layout:
        """Return the layout after pruning to ``kept_rows`` (ascending row numbers)."""
        return replace(
            self,
            positions=self.positions[kept_rows],
            is_protected=self.is_protected[kept_rows],
            is_forbidden=self.is_forbidden[kept_rows],
        )
