"""How dense layers of ``int8-dynamic`` round what enters them, found by running sample prompts.

What enters a layer is rounded to 256 steps between the smallest and the largest of *all* its
values. Where a few channels or tokens are far out, as decoders have them, most rows would share a
handful of steps. Two things help, and both are exact but for the rounding:

- *smoothing*: inputs are divided by factors that the weights of the same input are multiplied by,
  s = max|x|^a / max|w|^(1 - a) (SmoothQuant, arXiv 2211.10438, equation 4);
- *rows of one size*: every row is divided by its largest value, and its output multiplied by it.

A calibration bundle computes in float and gives what enters every dense layer. Each layer then
takes what is closest to its float output; one that stays too far off is kept as ``int8`` blocks,
which leave what enters them alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import onnx_ir as ir

from feather_edge.export.dense import PROBE_PREFIX
from feather_edge.export.precision import Rounding
from feather_edge.export.quantise import channel_codes, channel_scales
from feather_edge.graphs import VISION_ENCODER, TensorSpec
from feather_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from feather_edge.runtime.backends.wrapped import WrappedGraph
from feather_edge.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from feather_edge.bundle import Bundle
    from feather_edge.graphs import GraphSpec
    from feather_edge.runtime.backends.base import Graph, Tensor
    from feather_edge.samples import Sample

__all__ = ["Entering", "best_rounding", "calibrate"]

EXPONENTS = (0.0, 0.35, 0.5, 0.65)
"""Of smoothing; 0 stands for none."""
ROWS_PER_RUN = 32
"""Rows of each prefill by which errors are judged, the first one among them: decoders put their
largest activations there."""
MAX_NEW_TOKENS = 1


def calibrate(bundle: Bundle, samples: Sequence[Sample]) -> dict[str, Rounding]:
    """Return how each dense layer should round what enters it, and how far it is then off.

    Args:
        bundle: written with layers in the form ``probe``.
        samples: prompts to run.

    Returns:
        By ``decoder/<path>`` or ``vision_encoder/<path>``, in order of the graphs.

    Raises:
        BackendError: if ONNX Runtime is missing or fails.
    """
    backend = _Probing()
    with Session(bundle, backend) as session:
        for sample in samples:
            session.generate(sample.image, sample.prompt, max_new_tokens=MAX_NEW_TOKENS)
    return {
        path: best_rounding(runs, backend.weights[path].const_value.numpy())
        for path, runs in backend.runs.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Entering:
    """What entered a layer in one run: some of its rows [R, in], and the range of each input."""

    rows: NDArray[np.float32]
    lowest: NDArray[np.float32]
    highest: NDArray[np.float32]

    @classmethod
    def of(cls, x: NDArray[np.float32]) -> Entering:
        """Return what calibration keeps of [..., in]."""
        rows = x.reshape(-1, x.shape[-1])
        chosen = np.unique(np.linspace(0, len(rows) - 1, ROWS_PER_RUN).astype(np.int64))
        return cls(rows=rows[chosen], lowest=np.min(rows, axis=0), highest=np.max(rows, axis=0))

    def rounded(
        self, smoothing: NDArray[np.float32] | None, *, is_per_row: bool
    ) -> NDArray[np.float32]:
        """Return the rows, divided by ``smoothing`` and rounded as the graph does it."""
        factors = np.float32(1) if smoothing is None else smoothing
        rows = self.rows / factors
        if not is_per_row:
            lowest, highest = (self.lowest / factors).min(), (self.highest / factors).max()
            return _rounded(rows, float(lowest), float(highest))
        sizes = np.abs(rows).max(axis=1, keepdims=True)
        np.maximum(sizes, np.finfo(np.float32).tiny, out=sizes)
        rounded: NDArray[np.float32] = _rounded(rows / sizes, -1.0, 1.0) * sizes
        return rounded


def best_rounding(runs: Sequence[Entering], weight: NDArray[np.float32]) -> Rounding:
    """Return the rounding whose worst error over ``runs`` is least; ``weight`` is [in, out]."""
    columns = np.ascontiguousarray(weight.T)
    exact = np.concatenate([run.rows for run in runs]) @ weight
    ends = np.cumsum([len(run.rows) for run in runs])[:-1]
    inputs = np.max([np.maximum(-run.lowest, run.highest) for run in runs], axis=0)
    found: list[Rounding] = []
    for exponent in EXPONENTS:
        smoothing = _smoothing(inputs, np.abs(columns).max(axis=0), exponent)
        smooth = columns if smoothing is None else columns * smoothing
        scales = channel_scales(smooth)
        # One product for all runs: BLAS is slow at products of a few rows.
        entering = [
            run.rounded(smoothing, is_per_row=is_per_row)
            for is_per_row in (False, True)
            for run in runs
        ]
        products = np.concatenate(entering) @ (channel_codes(smooth, scales) * scales[:, None]).T
        for is_per_row, product in zip((False, True), np.split(products, 2), strict=True):
            errors = map(_relative_error, np.split(product, ends), np.split(exact, ends))
            rounding = Rounding(error=max(errors), smoothing=smoothing, is_per_row=is_per_row)
            found.append(rounding)
    return min(found, key=lambda each: each.error)


def _smoothing(
    inputs: NDArray[np.float32], weights: NDArray[np.float32], exponent: float
) -> NDArray[np.float32] | None:
    """Return the factors [in] of inputs and weights as large as given; their mean is 1 (log)."""
    if exponent == 0.0:
        return None
    least = np.float32(1e-6)
    factors = np.maximum(inputs, least) ** exponent / np.maximum(weights, least) ** (1 - exponent)
    even: NDArray[np.float32] = (factors / np.exp(np.log(factors).mean())).astype(np.float32)
    return even


def _rounded(x: NDArray[np.float32], lowest: float, highest: float) -> NDArray[np.float32]:
    """Return what ``DynamicQuantizeLinear`` makes of ``x`` within a range, in float again."""
    lowest, highest = min(lowest, 0.0), max(highest, 0.0)
    step = np.float32((highest - lowest) / 255 or 1.0)
    zero = np.rint(-lowest / step)
    codes: NDArray[np.float32] = np.clip(np.rint(x / step) + zero, 0, 255) - zero
    return codes * step


def _relative_error(found: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
    """Return the relative error of rows, root mean square."""
    power = np.maximum((exact**2).sum(axis=1), np.float32(1e-12))
    return float(np.sqrt((((found - exact) ** 2).sum(axis=1) / power).mean()))


class _Probing(OnnxRuntimeBackend):
    """ONNX Runtime on the CPU that keeps what enters every dense layer, one entry a prefill.

    Attributes:
        runs: by the layer's path.
        weights: [in, out], likewise; still on disk.
    """

    def __init__(self) -> None:
        super().__init__(device="cpu")
        self.runs: dict[str, list[Entering]] = {}
        self.weights: dict[str, Any] = {}

    def open(self, file: Path, spec: GraphSpec) -> Graph:
        """See ``Backend.open``."""
        graph = ir.load(file).graph
        part = VISION_ENCODER if spec.name == VISION_ENCODER else "decoder"
        outputs = [str(value.name) for value in graph.outputs]
        probes = {
            name: f"{part}/{name.removeprefix(PROBE_PREFIX)}"
            for name in outputs
            if name.startswith(PROBE_PREFIX)
        }
        for path in probes.values():
            self.weights[path] = graph.initializers[f"{path.removeprefix(f'{part}/')}.weight"]
        extra = tuple(TensorSpec(name=name, dtype="float32", shape=()) for name in probes)
        grown = msgspec.structs.replace(spec, outputs=(*spec.outputs, *extra))
        return _Probed(super().open(file, grown), self, probes)

    def note(self, path: str, x: Tensor) -> None:
        """Keep what entered a layer."""
        self.runs.setdefault(path, []).append(Entering.of(self.download(x)))


class _Probed(WrappedGraph):
    def __init__(self, graph: Graph, backend: _Probing, probes: Mapping[str, str]) -> None:
        super().__init__(graph)
        self._backend = backend
        self._probes = probes

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = super().run(inputs)
        for name, path in self._probes.items():
            self._backend.note(path, outputs.pop(name))
        return outputs
