"""Time one dense layer in every form that its weights can have, in ONNX Runtime on one thread.

Usage: python tools/measure_dense_forms.py [--inputs K] [--outputs N] [--rows M[,M...]]

Prints milliseconds, the least of several runs taken in turn, and the relative error of the output
for normal weights and inputs of which some channels are 20 times as large.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from safetensors.numpy import save_file

from feather_edge.checkpoint.reader import Checkpoint
from feather_edge.export.builder import GraphBuilder, save
from feather_edge.export.dense import dense
from feather_edge.export.dialects import DIALECTS
from feather_edge.export.precision import GraphPrecision
from feather_edge.export.weights import Weights
from feather_edge.graphs import GraphSpec, TensorSpec

FORMS: dict[str, dict[str, Any]] = {
    "float": {"linears": "float"},
    "int8-dynamic": {"linears": "int8-dynamic"},
    "int8, blocks of 32": {"linears": "int8", "block_size": 32},
    "int8, blocks of 128": {"linears": "int8", "block_size": 128},
    "int4, blocks of 32": {"linears": "int4", "block_size": 32},
    "int4, blocks of 128": {"linears": "int4", "block_size": 128},
}
NUM_ROUNDS = 7


def main() -> None:
    """Build, time in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=896)
    parser.add_argument("--outputs", type=int, default=4864)
    parser.add_argument("--rows", default="1,256,800")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((options.outputs, options.inputs)).astype(np.float32)
    channels = 1 + 19 * (rng.random(options.inputs) < 0.005)
    with tempfile.TemporaryDirectory() as folder:
        save_file({"layer.weight": weight}, Path(folder) / "model.safetensors")
        (Path(folder) / "config.json").write_text(json.dumps({"model_type": "one layer"}))
        sessions = {
            name: _session(Path(folder), weight.shape, form) for name, form in FORMS.items()
        }
        for num_rows in map(int, options.rows.split(",")):
            x = rng.standard_normal((1, num_rows, options.inputs)) * channels
            _report(sessions, x.astype(np.float32), weight)


def _session(
    folder: Path, shape: tuple[int, ...], form: dict[str, Any]
) -> onnxruntime.InferenceSession:
    out_size, in_size = shape
    spec = GraphSpec(
        name="dense",
        forms=(),
        inputs=(TensorSpec(name="x", dtype="float32", shape=(1, "rows", in_size)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(1, "rows", out_size)),),
    )
    weights = Weights(Checkpoint.open(folder), [("layer", "layer")])
    precision = GraphPrecision(dtype="float32", **form)
    g = GraphBuilder(spec, weights, precision=precision, dialect=DIALECTS[23])
    y = dense(
        g,
        g.inputs["x"],
        "layer",
        in_size=in_size,
        out_sizes=(out_size,),
        form=precision.linears,
        name="layer",
    )
    file = folder / "dense.onnx"
    save({file: g.model({"y": y})}, folder / "dense.onnx_data", on_tensor=lambda _: None)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _report(sessions: dict[str, Any], x: np.ndarray, weight: np.ndarray) -> None:
    expected = x @ weight.T
    times: dict[str, list[float]] = {name: [] for name in sessions}
    errors = {}
    for _ in range(NUM_ROUNDS):
        for name, session in sessions.items():
            start = time.perf_counter()
            (y,) = session.run(None, {"x": x})
            times[name].append(time.perf_counter() - start)
            errors[name] = np.linalg.norm(y - expected) / np.linalg.norm(expected)
    print(f"\n{x.shape[1]} rows")
    for name in sessions:
        print(f"{name:20}  {1000 * min(times[name]):8.2f} ms  error {errors[name]:.4f}")


if __name__ == "__main__":
    main()
