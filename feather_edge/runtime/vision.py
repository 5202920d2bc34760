"""The vision side of a session: visual tokens of pictures, remembered if the session is asked to.

A picture is known again by what the vision graph sees, its inputs after preprocessing: the same
scene from a file, from bytes or as an array is one entry, and a change of one pixel another.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from feather_edge.errors import BundleError
from feather_edge.runtime.least_recently_used import LeastRecentlyUsed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from feather_edge.bundle import Bundle
    from feather_edge.images import PreparedImages
    from feather_edge.runtime.backends import Backend, Graph


class VisionEncoder:
    """Runs the vision graph of a bundle.

    Args:
        bundle: whose contract.
        backend: that runs the graph.
        cache_images: calls of the graph, of a picture or a batch of its tiles, whose visual tokens
            are kept.
    """

    def __init__(self, bundle: Bundle, backend: Backend, *, cache_images: int) -> None:
        self._spec = bundle.vision_encoder
        self._hidden_size = bundle.manifest.decoder.hidden_size
        self._backend = backend
        self._cache = LeastRecentlyUsed(cache_images)

    def __call__(self, graph: Graph, prepared: PreparedImages) -> NDArray[Any]:
        """Return the graph's outputs, one row for each placeholder, [outputs, V, D].

        Args:
            graph: the opened vision graph.
            prepared: pictures of one request.

        Raises:
            BundleError: if the graph and the manifest do not fit.
            BackendError: if the graph fails.
        """
        shape = (len(self._spec.outputs), 0, self._hidden_size)
        parts = [np.empty(shape, self._spec.outputs[0].dtype)]
        parts += [self._encode(graph, call) for call in prepared.calls]
        features = np.concatenate(parts, axis=1)
        if prepared.arrange is None or features.shape[1] == 1:  # a fake's row, for all of them
            return features
        try:
            return np.stack([prepared.arrange(output) for output in features])
        except IndexError as error:
            raise BundleError(
                f"{self._spec.name} gives {features.shape[1]} rows of features, fewer than the "
                f"tiles of the manifest need; export the bundle again"
            ) from error

    def _encode(self, graph: Graph, call: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Return what the graph makes of one call, [outputs, tokens, D], or made of it before."""
        spec = self._spec
        if call.keys() != {tensor.name for tensor in spec.inputs}:
            raise BundleError(
                f"{spec.name} takes {', '.join(t.name for t in spec.inputs)}, but pictures "
                f"give {', '.join(call)}; export the bundle again"
            )
        arrays = {
            tensor.name: np.ascontiguousarray(call[tensor.name], dtype=tensor.dtype)
            for tensor in spec.inputs
        }
        key = _digest(arrays) if self._cache.capacity else b""
        known: NDArray[Any] | None = self._cache.get(key)
        if known is not None:
            return known
        outputs = graph.run({name: self._backend.upload(x) for name, x in arrays.items()})
        features = np.stack([self._backend.download(outputs[t.name]) for t in spec.outputs])
        if self._cache.capacity:
            self._cache.put(key, features)
        return features


def _digest(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return a hash of what a graph sees: the names, types, shapes and values of its inputs."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).data)
    return digest.digest()


def require_rows(features: NDArray[Any], num_placeholders: int) -> None:
    """Refuse features [V, D] that do not fill the placeholders of a prompt.

    A fake's single row stands for all of them.

    Raises:
        BundleError: naming both counts.
    """
    if len(features) not in {1, num_placeholders}:
        raise BundleError(
            f"the vision encoder gives {len(features)} visual tokens and the prompt has room for "
            f"{num_placeholders}; the manifest does not fit its graph, export the bundle again"
        )
