"""Which rows see which: the masks that a prompt and a decode step hand to the graphs.

A mask of kept rows is the mask of the full prompt with the pruned rows left out. So the window of
a local layer counts original positions: a pruned token's absence does not widen it.

Letters: S rows of the prompt still alive, P slots filled before, T slots of a segment's cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from feather_edge.pruning.layout import TEXT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feather_edge.manifest import PromptAttention
    from feather_edge.pruning import Layout


NO_PAST = np.empty(0, np.int64)


def prompt_mask(
    layout: Layout,
    attention: PromptAttention,
    *,
    past: NDArray[np.int64] = NO_PAST,
    window: int | None = None,
) -> NDArray[np.bool_]:
    """Return the mask [S, P + S] of a prompt.

    Args:
        layout: of the rows that are alive.
        attention: ``causal``; ``prefix``: every row sees every other, and no window applies;
            ``images``: causal, but the tokens of a raster see each other, within the window.
        past: [P], positions of text before these rows that the cache already holds.
        window: of a local layer, in positions; None for a layer that sees everything.
    """
    if attention == "prefix":
        return np.ones((layout.num_rows, len(past) + layout.num_rows), np.bool_)
    query, key = layout.positions[:, None], np.concatenate([past, layout.positions])[None]
    visible = key <= query
    if attention == "images":
        span = layout.span_of_row
        visible[:, len(past) :] |= (span[:, None] == span[None]) & (span != TEXT)
    if window is not None:
        visible &= query - key < window
    return visible


def step_mask(
    position: int, slots: NDArray[np.int64], *, window: int | None = None
) -> NDArray[np.bool_]:
    """Return the mask [1, T] of a new token.

    Args:
        position: of the token.
        slots: [T], position of what each slot holds, the new token's own last.
        window: of a local layer, in positions; None for a layer that sees everything.
    """
    visible = np.ones((1, len(slots)), np.bool_)
    if window is not None:
        visible &= (position - slots < window)[None]
    return visible
