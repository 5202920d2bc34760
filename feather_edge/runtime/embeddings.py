"""The vocabulary's embeddings, which the host looks up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from feather_edge.checkpoint.reader import read_tensors
from feather_edge.errors import BundleError
from feather_edge.graphs import EMBED_TOKENS_SCALES, EMBED_TOKENS_TENSOR

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feather_edge.bundle import Bundle
    from feather_edge.graphs import DType

__all__ = ["Embeddings"]


class Embeddings:
    """Rows [V, D] of a memory-mapped table, given as the decoder takes them: its type, its scale.

    The type of the file may be narrower; integers have a scale for each row, ``row_scales`` [V].
    """

    def __init__(
        self,
        table: NDArray[Any],
        dtype: DType,
        *,
        scale: float,
        row_scales: NDArray[np.float32] | None = None,
    ) -> None:
        self._table = table
        self._row_scales = row_scales
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
        views = read_tensors(bundle.embed_tokens_file)
        expected: dict[str, tuple[int, ...]] = {EMBED_TOKENS_TENSOR: shape}
        if bundle.manifest.recipe.embedding_precision == "int8":
            expected[EMBED_TOKENS_SCALES] = shape[:1]
        if {name: view.shape for name, view in views.items()} != expected:
            wanted = " and ".join(f"{name} {list(size)}" for name, size in expected.items())
            raise BundleError(
                f"{bundle.embed_tokens_file} must hold {wanted}; export the bundle again"
            )
        return cls(
            views[EMBED_TOKENS_TENSOR].read(),
            bundle.decoders[0].inputs[0].dtype,
            scale=bundle.manifest.embedding_scale,
            row_scales=(
                views[EMBED_TOKENS_SCALES].read() if EMBED_TOKENS_SCALES in expected else None
            ),
        )

    def __getitem__(self, token_ids: NDArray[np.int64] | int) -> NDArray[Any]:
        """Return [S, D] for ids [S], a copy to write into; [D] for one id."""
        rows = self._table[token_ids]
        if self._row_scales is not None:
            rows = rows * self._row_scales[token_ids, None]
        if self._scale != 1:
            rows = rows * self._scale
        return rows.astype(self._dtype, copy=False)
