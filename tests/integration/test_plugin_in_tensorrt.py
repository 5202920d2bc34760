"""Exported graphs find the plugin in TensorRT's parser, and build with it and without it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from support.engines import job_for

from feather_edge.engines.model_bytes import model_bytes
from feather_edge.engines.plugin_build import build_plugin
from feather_edge.graphs import CACHE_CAPACITY
from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from support.bundles import BundleFactory

TWIN = Path(__file__).parent.parent / "support" / "tensorrt_rtx_twin.py"
NODE = "prune/top_k_uniform_gather"
BENIGN = ("has Int64 binding", "is unused or used only at compile-time")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None, reason="needs the extra rtx"
    ),
]


@pytest.fixture(
    scope="module",
    params=["decoder_0.onnx", "decoder_0.opset18.onnx", "decoder_0.opset24.onnx"],
)
def graph(
    request: pytest.FixtureRequest,
    bundles: BundleFactory,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The first segment in fp16, for each opset, its caches of 2048 tokens if in place."""
    bundle = bundles(recipe=ExportRecipe(precision="fp16")).bundle
    folder = shutil.copytree(bundle.path / "onnx", tmp_path_factory.mktemp("graph") / "onnx")
    job = job_for(folder / request.param, fixed_dims={CACHE_CAPACITY: 2048})
    (folder / request.param).write_bytes(model_bytes(job))
    return folder / request.param


@pytest.fixture(scope="module")
def library_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with libtensorrt_rtx.so, which the parser opens by that name for plugins."""
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    assert spec is not None
    assert spec.submodule_search_locations
    (library,) = Path(spec.submodule_search_locations[0]).glob("libtensorrt_rtx.so.*")
    folder = tmp_path_factory.mktemp("lib")
    (folder / "libtensorrt_rtx.so").symlink_to(library)
    return folder


def build(graph: Path, plugin: str, library_path: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(TWIN), str(graph), plugin],
        capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "LD_LIBRARY_PATH": str(library_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def complaints(report: dict[str, Any]) -> list[str]:
    return [line for line in report["log"] if not any(words in line for words in BENIGN)]


def test_the_plugin_is_found_and_builds(graph: Path, library_path: Path) -> None:
    report = build(graph, "twin", library_path)
    assert complaints(report) == []
    assert report["plugin_layers"] == [report["node"]] == [NODE]
    assert report["shape_inputs"] == [1]  # num_kept, as a value that the host knows
    assert report["input_types"] == ["DataType.FLOAT"] * 2 + ["DataType.HALF"] * 3
    assert report["output_types"] == ["DataType.INT64"] + ["DataType.HALF"] * 3
    assert report["profiles"] == 2
    assert report["engine_bytes"] > 0


def test_without_the_plugin_the_function_builds(graph: Path, library_path: Path) -> None:
    report = build(graph, "none", library_path)
    assert complaints(report) == []
    assert report["plugin_layers"] == []
    assert report["engine_bytes"] > 0


def test_without_the_attribute_the_plugin_cannot_know_its_shapes(
    graph: Path, library_path: Path, tmp_path: Path
) -> None:
    model = onnx.load(graph)
    for node in model.graph.node:
        if node.op_type == "TopKUniformGather":
            kept = [a for a in node.attribute if a.name.startswith("plugin_")]
            del node.attribute[:]
            node.attribute.extend(kept)
    onnx.save(model, tmp_path / "decoder.onnx")
    report = build(tmp_path / "decoder.onnx", "twin", library_path)
    assert report["engine_bytes"] is None


@pytest.mark.skipif("TENSORRT_INCLUDE" not in os.environ, reason="needs TENSORRT_INCLUDE")
def test_the_compiled_plugin_is_found_and_builds(
    graph: Path, library_path: Path, tmp_path: Path
) -> None:
    built = build_plugin(
        tmp_path, arch=(86,), tensorrt_include=Path(os.environ["TENSORRT_INCLUDE"])
    )
    report = build(graph, str(built.library), library_path)
    assert complaints(report) == []
    assert report["plugin_layers"] == [NODE]
    assert report["engine_bytes"] > 0
