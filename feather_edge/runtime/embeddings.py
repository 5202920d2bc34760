"""The vocabulary's embeddings, which the host looks up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from feather_edge.checkpoint.reader import read_tensors
from feather_edge.errors import BundleError
from feather_edge.graphs import EMBED_TOKENS_TENSOR

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feather_edge.bundle import Bundle
    from feather_edge.graphs import DType

__all__ = ["Embeddings"]


class Embeddings:
    """Rows [V, D] of a memory-mapped table, given as the decoder takes them: its type, its scale.

    The type of the file may be narrower.
    """

    def __init__(self, table: NDArray[Any], dtype: DType, *, scale: float) -> None:
        self._table = table
        self._dtype = np.dtype(dtype)
        self._scale = np.float32(scale)

    @classmethod
    def open(cls, bundle: Bundle) -> Embeddings:
        """Open the embeddings of a bundle.

        Raises:
            BundleError: if the file does not hold what the manifest says.
        """
        decoder = bundle.manifest.decoder
        shape = (decoder.vocab_size, decoder.hidden_size)
        view = read_tensors(bundle.embed_tokens_file).get(EMBED_TOKENS_TENSOR)
        if view is None or view.shape != shape:
            raise BundleError(
                f"{bundle.embed_tokens_file} must hold {EMBED_TOKENS_TENSOR} {list(shape)}; "
                f"export the bundle again"
            )
        dtype = bundle.decoders[0].inputs[0].dtype
        return cls(view.read(), dtype, scale=bundle.manifest.embedding_scale)

    def __getitem__(self, token_ids: NDArray[np.int64] | int) -> NDArray[Any]:
        """Return [S, D] for ids [S], a copy to write into; [D] for one id."""
        rows = self._table[token_ids]
        if self._scale != 1:
            rows = rows * self._scale
        return rows.astype(self._dtype, copy=False)
