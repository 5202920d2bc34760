from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest

from feather_edge import Session
from feather_edge.errors import BackendError
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime.backends import BACKEND_NAMES, create_backend
from feather_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    message = r"onnxruntime is not installed; run: pip install 'feather-edge\[ort\]'"
    with pytest.raises(BackendError, match=message):
        OnnxRuntimeBackend()


def test_unknown_backend_lists_the_known() -> None:
    with pytest.raises(BackendError, match="backend 'tensorflow' is unknown; choose auto"):
        create_backend("tensorflow")


def test_backends_by_name() -> None:
    assert "auto" in BACKEND_NAMES
    assert isinstance(create_backend("onnxruntime"), OnnxRuntimeBackend)
    with pytest.raises(BackendError, match="backend tensorrt runs the engines of a bundle"):
        create_backend("tensorrt")
    with pytest.raises(BackendError, match="target orin names engines, but backend auto runs"):
        create_backend("auto", target="orin")


@pytest.mark.parametrize("device", ["tpu", "cuda"])
def test_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])

    message = f"device '{device}' is not available in onnxruntime .*; available: cpu; CUDA needs"
    with pytest.raises(BackendError, match=message):
        OnnxRuntimeBackend(device=device)


def test_cuda_is_taken_where_the_package_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)

    assert OnnxRuntimeBackend().device == "cuda"
    assert OnnxRuntimeBackend(device="cpu").device == "cpu"


@pytest.mark.parametrize("content", [b"", b"not a graph", None])
def test_broken_file(bundles: BundleFactory, tmp_path: Path, content: bytes | None) -> None:
    spec = bundles(num_layers=4).bundle.vision_encoder
    file = tmp_path / "broken.onnx"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(
        BackendError, match=r"onnxruntime cannot load .*broken\.onnx: .+"
    ) as caught:
        OnnxRuntimeBackend(device="cpu").open(file, spec)
    assert "\n" not in str(caught.value)


def test_wrong_input_names_the_graph(bundles: BundleFactory) -> None:
    bundle = bundles(num_layers=4).bundle
    backend = OnnxRuntimeBackend(device="cpu", num_threads=1)
    graph = backend.open(bundle.path / bundle.vision_encoder.file, bundle.vision_encoder)

    with pytest.raises(BackendError, match="onnxruntime failed in graph vision_encoder: .+") as e:
        graph.run({"pixel_values": backend.upload(np.zeros((1, 3, 5, 5), np.float32))})
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "bool"])
def test_upload_and_download_keep_values(dtype: str) -> None:
    backend = OnnxRuntimeBackend(device="cpu")
    array = np.arange(12).reshape(1, 4, 3).astype(dtype)

    back = backend.download(backend.upload(array))

    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_rows_are_taken_of_every_batch_entry() -> None:
    backend = OnnxRuntimeBackend(device="cpu")
    array = np.arange(24.0).reshape(2, 4, 3)

    taken = backend.take_rows(backend.upload(array), np.array([0, 3]))

    np.testing.assert_array_equal(backend.download(taken), array[:, [0, 3]])


def test_shared_weights_compute_the_same(bundles: BundleFactory) -> None:
    bundle = bundles(num_layers=4).bundle
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    answers = []
    for share_weights in (False, True):
        with Session.open(bundle, share_weights=share_weights) as session:
            answers.append(session.generate(image, "where is it ?", max_new_tokens=8).token_ids)
    assert answers[0] == answers[1]


def test_shared_weights_take_no_copy_of_them(tmp_path: Path, bundles: BundleFactory) -> None:
    checkpoint = bundles.checkpoint(
        num_layers=2, hidden_size=512, intermediate_size=4096, image_size=56
    )
    bundle = bundles.export(checkpoint, recipe=ExportRecipe(stages=())).bundle
    grown = {}
    for share_weights in (False, True):
        code = (
            "import sys; from feather_edge import Session;"
            "from feather_edge.runtime.memory import rss_mib;"
            "one = Session.open(sys.argv[1], share_weights=sys.argv[2] == 'True');"
            "before = rss_mib();"
            "two = Session.open(sys.argv[1], share_weights=sys.argv[2] == 'True');"
            "print(rss_mib() - before)"
        )
        words = [sys.executable, "-c", code, str(bundle.path), str(share_weights)]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        grown[share_weights] = float(done.stdout)
    assert grown[True] < grown[False] / 2


@pytest.mark.parametrize("name", ["openvino", "tensorrt"])
def test_other_backends_share_no_weights(bundles: BundleFactory, name: str) -> None:
    with pytest.raises(
        BackendError, match=f"weights are shared by onnxruntime, and backend {name}"
    ):
        create_backend(name, bundles(num_layers=4).bundle, share_weights=True)
