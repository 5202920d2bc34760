"""Opening the graphs of a bundle, several at a time where the backend can."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from feather_edge.bundle import Bundle
    from feather_edge.runtime.backends import Backend, Graph


class OpeningGraphs:
    """The graphs of a bundle, which open while the caller does something else.

    Each error is raised where its graph is asked for, so a broken bundle is told by one of them.

    Args:
        bundle: whose graphs.
        backend: that opens them.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        specs = (bundle.vision_encoder, *bundle.decoders)
        num_workers = len(specs) if backend.opens_in_parallel else 1
        pool = ThreadPoolExecutor(num_workers, thread_name_prefix="open-graph")
        self._opening = [
            pool.submit(backend.open, bundle.path / spec.file, spec) for spec in specs
        ]
        pool.shutdown(wait=False)

    def vision(self) -> Graph:
        """Return the vision encoder, once it is open.

        Raises:
            BackendError: if it cannot be loaded.
        """
        return self._opening[0].result()

    def decoders(self) -> list[Graph]:
        """Return the segments of the decoder in order, once they are open.

        Raises:
            BackendError: if one cannot be loaded: the first of them.
        """
        return [opening.result() for opening in self._opening[1:]]

    def close(self) -> None:
        """Give up what has not begun to open, and wait for what has."""
        begun = [opening for opening in self._opening if not opening.cancel()]
        for opening in begun:
            opening.exception()
