"""The vocabulary's embeddings: the one lookup that the host does for the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from feather_edge.checkpoint.reader import read_tensors
from feather_edge.errors import BundleError
from feather_edge.graphs import EMBED_TOKENS_TENSOR

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feather_edge.bundle import Bundle

__all__ = ["Embeddings", "open_embeddings"]


class Embeddings:
    """The vocabulary's embeddings [V, D], memory-mapped; rows come as the decoder takes them."""

    def __init__(self, table: NDArray[Any], *, scale: float) -> None:
        self._table = table
        self._scale = np.float32(scale)

    def __getitem__(self, token_ids: NDArray[np.int64] | int) -> NDArray[Any]:
        rows = self._table[token_ids]
        # Unscaled, what one id gives is a view of the file; what several give is a copy already.
        return rows if self._scale == 1 else (rows * self._scale).astype(rows.dtype)


def open_embeddings(bundle: Bundle) -> Embeddings:
    """Return the embeddings of a bundle, memory-mapped.

    Raises:
        BundleError: if its file holds something else.
    """
    shape = (bundle.manifest.decoder.vocab_size, bundle.manifest.decoder.hidden_size)
    view = read_tensors(bundle.embed_tokens_file).get(EMBED_TOKENS_TENSOR)
    if view is None or view.shape != shape:
        raise BundleError(
            f"{bundle.embed_tokens_file} must hold {EMBED_TOKENS_TENSOR} {list(shape)}; "
            f"export the bundle again"
        )
    return Embeddings(view.read(), scale=bundle.manifest.embedding_scale)
