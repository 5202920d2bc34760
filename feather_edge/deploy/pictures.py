"""The kept-token pictures of a report: shipped scenes, and what each stage kept of them."""

from __future__ import annotations

import dataclasses
import io
from typing import TYPE_CHECKING

from feather_edge.deploy.state import Picture
from feather_edge.runtime.session import Session
from feather_edge.samples import shipped_samples
from feather_edge.staging import write_whole
from feather_edge.viz import kept_panels

if TYPE_CHECKING:
    from feather_edge.bundle import Bundle

__all__ = ["draw_kept_tokens"]

PICTURE_FILE = "deploy/kept-tokens/{}-{}.png"
PANEL_SIZE = 392
MAX_NEW_TOKENS = 16
"""An answer stands in a caption."""


def draw_kept_tokens(
    bundle: Bundle, *, backend: str, target: str | None
) -> tuple[tuple[Picture, ...], ...]:
    """Ask about shipped scenes and draw what was kept, one list of pictures for each.

    Returns:
        nothing for a bundle that prunes nothing.
    """
    if not bundle.schedule.stages:
        return ()
    rows = []
    with Session.open(bundle, backend=backend, target=target) as session:
        none = dataclasses.replace(session.pruning, criterion="none", pre_criterion="none")
        for number, sample in enumerate(shipped_samples()):
            unpruned, result = (
                session.generate(
                    sample.image, sample.prompt, pruning=pruning, max_new_tokens=MAX_NEW_TOKENS
                )
                for pruning in (none, None)
            )
            panels = kept_panels(
                bundle, sample.image, result, unpruned=unpruned, panel_size=PANEL_SIZE
            )
            row = []
            for place, panel in enumerate(panels):
                name = PICTURE_FILE.format(number, place)
                buffer = io.BytesIO()
                panel.picture.save(buffer, format="PNG", optimize=True)
                write_whole(bundle.path / name, buffer.getvalue())
                row.append(Picture(file=name, title=panel.title, caption=panel.subtitle))
            rows.append(tuple(row))
    return tuple(rows)
