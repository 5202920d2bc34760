"""How fast this machine multiplies and copies, measured: what a graph can reach at best."""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from feather_edge.errors import BackendError
from feather_edge.graphs import TENSORRT_VERSIONS, GraphForm, GraphSpec, TensorSpec
from feather_edge.runtime.backend_names import ENGINE_BACKENDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from feather_edge.graphs import DType
    from feather_edge.runtime.backends import Backend

__all__ = ["MachineRates"]

MIN_RUNS = 5
MIN_TIME_S = 0.3
MAX_COPY_BYTES = 2**28
OPSET = 23
IR_VERSION = 11


class MachineRates:
    """Rates of a backend's device; each size is measured once.

    Engines are built, not opened, so on TensorRT there is nothing to measure with: every rate is
    None there, and so is every roof.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._has_rates = backend.name not in ENGINE_BACKENDS
        self.matmul = cache(self._matmul)
        self.copy = cache(self._copy)

    def _matmul(self, rows: int, inner: int, columns: int, dtype: DType) -> float | None:
        """Return operations per second of [rows, inner] by a weight [inner, columns].

        None where the backend has no such product of this type.
        """
        if not self._has_rates:
            return None
        spec = _matmul_spec(rows, inner, columns, dtype)
        rng = np.random.default_rng(0)
        left, right = (
            rng.standard_normal(shape, np.float32).astype(dtype)
            for shape in ((rows, inner), (inner, columns))
        )
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / spec.file
            file.write_bytes(_matmul_model(spec, right))
            try:
                graph = self._backend.open(file, spec)
            except BackendError:
                return None
        inputs = {"left": self._backend.upload(left)}
        return 2 * rows * inner * columns / _fastest_s(lambda: graph.run(inputs))

    def _copy(self, num_bytes: int) -> float | None:
        """Return bytes per second, read and written, of copying as many as a model has weights.

        On all cores. What fits into a cache is copied there, as a small model's weights would be.
        """
        if not self._has_rates or self._backend.device != "cpu":
            return None
        num_parts = len(os.sched_getaffinity(0))
        size = max(1, min(num_bytes, MAX_COPY_BYTES) // num_parts)
        pairs = [(np.ones(size, np.uint8), np.empty(size, np.uint8)) for _ in range(num_parts)]
        with ThreadPoolExecutor(num_parts) as pool:

            def copy() -> None:
                list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))

            return 2 * size * num_parts / _fastest_s(copy)


def _fastest_s(run: Callable[[], object]) -> float:
    """Return the shortest time of several runs: a roof is what was reached once."""
    run()
    times: list[float] = []
    while len(times) < MIN_RUNS or sum(times) < MIN_TIME_S:
        start_s = time.perf_counter()
        run()
        times.append(time.perf_counter() - start_s)
    return min(times)


def _matmul_spec(rows: int, inner: int, columns: int, dtype: DType) -> GraphSpec:
    form = GraphForm(opset=OPSET, file="matmul.onnx", tensorrt=TENSORRT_VERSIONS[OPSET])
    return GraphSpec(
        name="matmul",
        forms=(form,),
        inputs=(TensorSpec(name="left", dtype=dtype, shape=(rows, inner)),),
        outputs=(TensorSpec(name="product", dtype=dtype, shape=(rows, columns)),),
    )


def _matmul_model(spec: GraphSpec, weight: np.ndarray) -> bytes:
    from onnx import helper, numpy_helper

    (left,), (product,) = (
        [
            helper.make_tensor_value_info(
                t.name, helper.np_dtype_to_tensor_dtype(np.dtype(t.dtype)), t.shape
            )
            for t in tensors
        ]
        for tensors in (spec.inputs, spec.outputs)
    )
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["left", "weight"], ["product"])],
        spec.name,
        [left],
        [product],
        [numpy_helper.from_array(weight, "weight")],
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    return bytes(model.SerializeToString())
