"""Backends: what executes graphs. One thin seam (``base``), one file per implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from feather_edge.errors import BackendError
from feather_edge.runtime.backend_names import BACKEND_NAMES, ENGINE_BACKENDS, OPENVINO_BF16
from feather_edge.runtime.backends.base import Backend, Graph
from feather_edge.runtime.backends.fake import FakeBackend

if TYPE_CHECKING:
    from feather_edge.bundle import Bundle

__all__ = [
    "BACKEND_NAMES",
    "ENGINE_BACKENDS",
    "Backend",
    "FakeBackend",
    "Graph",
    "create_backend",
]


def create_backend(
    name: str,
    bundle: Bundle | None = None,
    *,
    target: str | None = None,
    num_threads: int | None = None,
    cuda_graphs: bool = True,
    share_weights: bool = False,
) -> Backend:
    """Return the backend called ``name``.

    Args:
        name: one of ``BACKEND_NAMES``; ``auto`` is what ``feather-edge tune`` has measured to
            run the bundle's graphs fastest here, and onnxruntime where it has not.
        bundle: whose engines, for a backend that runs engines; ONNX Runtime learns from it how
            rows attend to one another.
        target: which of its engines; None takes the only ones there are.
        num_threads: of one graph run on the CPU; None is one for each physical core that the
            process may use.
        cuda_graphs: whether decode steps of engines may be captured as CUDA graphs.
        share_weights: leave ONNX Runtime's weights in files that sessions and processes share.

    Raises:
        BackendError: if the name is unknown, the backend's package is not installed, or the
            bundle has no engines for it.
    """
    if name not in BACKEND_NAMES:
        raise BackendError(f"backend {name!r} is unknown; choose {', '.join(BACKEND_NAMES)}")
    if share_weights and name not in ("auto", "onnxruntime"):
        raise BackendError(
            f"weights are shared by onnxruntime, and backend {name} makes copies of its own; "
            f"choose onnxruntime, or leave share_weights out"
        )
    if name in ENGINE_BACKENDS:
        if bundle is None:
            raise BackendError(f"backend {name} runs the engines of a bundle; give the bundle")
        if num_threads is not None:
            raise BackendError(
                f"threads {num_threads} are of the CPU, but backend {name} runs on the GPU; leave "
                f"them out"
            )
        from feather_edge.runtime.backends.tensorrt import TensorRTBackend

        return TensorRTBackend(bundle, target=target, name=name, cuda_graphs=cuda_graphs)
    if target is not None:
        raise BackendError(
            f"target {target} names engines, but backend {name} runs ONNX graphs; choose "
            f"{' or '.join(ENGINE_BACKENDS)}, or leave the target out"
        )
    if not cuda_graphs:
        raise BackendError(
            f"CUDA graphs are of engines, and backend {name} runs ONNX graphs without them; "
            f"choose {' or '.join(ENGINE_BACKENDS)}, or leave the option out"
        )
    if name == "auto" and bundle is not None and not share_weights:
        return _measured_fastest(bundle, num_threads=num_threads)
    if name in ("openvino", OPENVINO_BF16):
        from feather_edge.runtime.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(num_threads=num_threads, in_bf16=name == OPENVINO_BF16)
    from feather_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(
        num_threads=num_threads,
        causal_heads=_causal_heads(bundle),
        share_weights=share_weights,
    )


def _measured_fastest(bundle: Bundle, *, num_threads: int | None) -> Backend:
    from feather_edge.runtime.backend_choice import choose_backend
    from feather_edge.runtime.fingerprint import Fingerprint, fingerprint

    def here(name: str) -> Fingerprint:
        return fingerprint(bundle, create_backend(name, bundle, num_threads=num_threads))

    name, choice = choose_backend(bundle.path, here)
    backend = create_backend(name, bundle, num_threads=num_threads)
    backend.choice = choice
    return backend


def _causal_heads(bundle: Bundle | None) -> int | None:
    """Return the query heads of a decoder that attends causally; None where it does not."""
    if bundle is None or bundle.manifest.prompt_attention != "causal":
        return None
    return bundle.manifest.decoder.num_attention_heads
