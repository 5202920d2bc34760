"""OpenVINO runs the graphs that ONNX Runtime runs, and answers the same."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from support.families.gemma import tiny_gemma3, tiny_paligemma
from support.images import random_images
from support.sealing import seal_files

from feather_edge import Pruning, Session
from feather_edge.errors import BackendError, BundleError
from feather_edge.pruning import Layout
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime import kv_cache
from feather_edge.runtime.backends import create_backend
from feather_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from feather_edge.runtime.backends.openvino import OpenVinoBackend
from feather_edge.runtime.decoder import DecoderChain
from feather_edge.runtime.fingerprint import fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory
    from support.openvino import SetCapabilities

    from feather_edge.bundle import Bundle

PROMPT = "where is the red circle ?"


@pytest.fixture(scope="module", params=["23", "18"])
def bundle(request: pytest.FixtureRequest, bundles: BundleFactory) -> Bundle:
    recipe = ExportRecipe(stages=(2, 4), opset=request.param)
    return bundles(num_layers=6, image_size=56, recipe=recipe).bundle


@pytest.fixture(scope="module")
def sessions(bundle: Bundle) -> tuple[Session, Session]:
    """The reference and what is tested; requests find the graphs as earlier ones left them."""
    reference = OnnxRuntimeBackend(device="cpu", num_threads=1)
    return Session.open(bundle, backend=reference), Session.open(bundle, backend="openvino")


@pytest.mark.parametrize(
    ("criterion", "selection"),
    [("none", "fill"), ("feather", "fill"), ("feather", "union"), ("fastv", "fill")],
)
@pytest.mark.parametrize("num_images", [1, 2])
def test_answers_are_those_of_onnxruntime(
    sessions: tuple[Session, Session], criterion: str, selection: str, num_images: int
) -> None:
    pruning = Pruning(criterion=criterion, selection=selection)
    images = random_images(num_images, seed=3)
    reference, ours = (
        session.generate(images, PROMPT, pruning=pruning, max_new_tokens=8) for session in sessions
    )
    assert ours.token_ids == reference.token_ids
    for kept, expected in zip(ours.stages, reference.stages, strict=True):
        assert kept.kept_indices.tolist() == expected.kept_indices.tolist()
    assert (ours.backend, ours.device) == ("openvino", "cpu")


def test_decode_steps_of_a_request_have_equal_shapes(bundle: Bundle) -> None:
    """So OpenVINO prepares nothing for them; only what is new in a cache is copied into it."""
    backend = OpenVinoBackend(num_threads=1)
    graphs = [backend.open(bundle.path / spec.file, spec) for spec in bundle.decoders]
    chain = DecoderChain(graphs, bundle.manifest, bundle.schedule, backend, max_new_tokens=9)
    embeds = np.zeros((20, bundle.manifest.decoder.hidden_size), np.float32)

    def shapes() -> list[dict[str, tuple[int, ...]]]:
        names = [[*graph.spec.caches, *graph.spec.caches.values()] for graph in graphs]
        return [
            {name: tuple(graph.request.get_tensor(name).shape) for name in of_graph}
            for graph, of_graph in zip(graphs, names, strict=True)
        ]

    chain.prefill(embeds, Layout.full(20, []), None)
    prefill, steps = shapes(), []
    for _ in range(3):
        chain.decode_step(embeds[0])
        steps.append(shapes())
    assert steps[0] == steps[1] == steps[2]
    for graph, before, after in zip(graphs, prefill, steps[0], strict=True):
        assert graph.spec.caches_in_place
        for present, past in graph.spec.caches.items():
            assert (before[past][2], before[present][2]) == (0, 20)
            assert (after[past][2], after[present][2]) == (20 + 9, 1)


@pytest.mark.parametrize("step", [3, 256])
def test_answers_do_not_depend_on_how_many_slots_are_seen(
    sessions: tuple[Session, Session], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr(kv_cache, "SEEN_STEP", step)
    expected, found = (
        session.generate(random_images(1), PROMPT, max_new_tokens=12) for session in sessions
    )
    assert found.token_ids == expected.token_ids
    assert len(found.token_ids) == 12


@pytest.mark.parametrize("make", [tiny_gemma3, tiny_paligemma])
def test_masks_and_scales_of_other_decoders_hold(bundles: BundleFactory, make: Any) -> None:
    exported = bundles(make, recipe=ExportRecipe(stages=(2,), opset="23")).bundle
    answers = []
    for backend in ("onnxruntime", "openvino"):
        with Session.open(exported, backend=backend) as session:
            answers.append(session.generate(random_images(1), PROMPT, max_new_tokens=6))
    assert answers[0].token_ids == answers[1].token_ids


@pytest.mark.parametrize("block_size", [16, 64])
def test_activations_are_rounded_in_the_blocks_of_the_weights(
    bundles: BundleFactory, monkeypatch: pytest.MonkeyPatch, block_size: int
) -> None:
    recipe = ExportRecipe(stages=(2,), precision="int8", block_size=block_size)
    exported = bundles(num_layers=4, image_size=56, recipe=recipe).bundle
    asked: list[int] = []
    core = pytest.importorskip("openvino").Core
    compile_model = core.compile_model

    def noted(self: Any, model: Any, device: str, hints: dict[str, Any]) -> Any:
        asked.append(hints["DYNAMIC_QUANTIZATION_GROUP_SIZE"])
        return compile_model(self, model, device, hints)

    monkeypatch.setattr(core, "compile_model", noted)
    with Session.open(exported, backend="openvino") as session:
        assert session.generate(random_images(1), PROMPT, max_new_tokens=2).token_ids
    # The smallest of a graph: inputs that 64 does not divide have smaller blocks.
    assert set(asked) <= {16, 32, 64}
    assert max(asked) == (16 if block_size == 16 else 32)


def test_one_model_is_read_at_a_time(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads side by side may wait for one another for ever."""
    core = pytest.importorskip("openvino").Core
    read_model = core.read_model
    reading = threading.Lock()

    def noted(self: Any, file: Any) -> Any:
        assert reading.acquire(blocking=False), "another model is being read"
        try:
            time.sleep(0.02)
            return read_model(self, file)
        finally:
            reading.release()

    monkeypatch.setattr(core, "read_model", noted)
    with Session.open(bundle, backend="openvino") as session:
        assert session.generate(random_images(1), PROMPT, max_new_tokens=1).token_ids


def test_ties_go_to_the_lowest_row(bundle: Bundle) -> None:
    spec = bundle.decoders[0]
    backend = OpenVinoBackend(num_threads=1)
    graph = backend.open(bundle.path / spec.file, spec)
    sizes = {"batch": 1, "sequence": 40, "cache_capacity": 40, "total_sequence": 40}
    inputs = {
        t.name: np.ones([sizes[d] if isinstance(d, str) else d for d in t.shape], t.dtype)
        for t in graph.spec.inputs
    }
    inputs |= {"num_kept": np.array([9]), "write_indices": np.array([0])}

    outputs = graph.run({name: backend.upload(value) for name, value in inputs.items()})

    assert backend.download(outputs["kept_indices"]).tolist() == [list(range(9))]


def test_what_a_run_gave_outlives_the_next_run(bundle: Bundle) -> None:
    spec = bundle.vision_encoder
    backend = OpenVinoBackend(num_threads=1)
    graph = backend.open(bundle.path / spec.file, spec)
    shape = [1, *spec.inputs[0].shape[1:]]
    first = graph.run({"pixel_values": backend.upload(np.ones(shape, np.float32))})
    before = backend.download(first["image_features"])
    graph.run({"pixel_values": backend.upload(np.zeros(shape, np.float32))})
    np.testing.assert_array_equal(backend.download(first["image_features"]), before)


def test_float16_graphs_run(bundles: BundleFactory) -> None:
    recipe = ExportRecipe(stages=(2, 4), precision="fp16")
    exported = bundles(num_layers=6, image_size=56, recipe=recipe).bundle
    with Session.open(exported, backend="openvino") as session:
        result = session.generate(random_images(1), PROMPT, max_new_tokens=4)
    assert len(result.token_ids) == 4


def test_bfloat16_is_refused_where_it_would_be_emulated(capabilities: SetCapabilities) -> None:
    capabilities("FP32", "INT8")
    with pytest.raises(BackendError) as caught:
        create_backend("openvino-bf16")
    assert str(caught.value) == (
        "backend openvino-bf16 needs a processor that multiplies in bfloat16, and OpenVINO lists "
        "FP32, INT8 for this one; choose openvino or onnxruntime"
    )


def test_bfloat16_is_what_the_graphs_are_compiled_for(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capabilities: SetCapabilities
) -> None:
    capabilities("FP32", "BF16")
    backend = create_backend("openvino-bf16", bundle, num_threads=1)
    asked: list[dict[str, Any]] = []
    core = type(backend._core)
    compile_model = core.compile_model

    def noted(self: Any, model: Any, device: str, hints: dict[str, Any]) -> Any:
        asked.append(hints)
        return compile_model(self, model, device, hints)

    monkeypatch.setattr(core, "compile_model", noted)
    with Session.open(bundle, backend=backend) as session:
        result = session.generate(random_images(1), PROMPT, max_new_tokens=2)
    assert {hints["INFERENCE_PRECISION_HINT"] for hints in asked} == {"bf16"}
    assert (result.backend, len(result.token_ids)) == ("openvino-bf16", 2)
    assert fingerprint(bundle, backend).file == "calibration/openvino-bf16-cpu.json"


@pytest.mark.parametrize(
    ("name", "precision", "message"),
    [
        ("openvino", "bf16", "is bfloat16, and openvino runs graphs of float32 and float16; exp"),
        ("openvino-bf16", "fp16", "is float16, and openvino-bf16 runs graphs of float32; export"),
    ],
)
def test_graphs_of_other_types_are_refused(
    bundles: BundleFactory,
    capabilities: SetCapabilities,
    name: str,
    precision: str,
    message: str,
) -> None:
    capabilities("FP32", "BF16")
    exported = bundles(
        num_layers=4, image_size=56, recipe=ExportRecipe(stages=(2,), precision=precision)
    ).bundle
    with pytest.raises(BackendError, match=message):
        Session.open(exported, backend=name)


def test_a_version_without_the_limit_of_shapes_runs(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise RuntimeError("Unsupported property")

    monkeypatch.setattr(pytest.importorskip("openvino").Core, "set_property", refused)
    with Session.open(bundle, backend="openvino") as session:
        assert session.generate(random_images(1), PROMPT, max_new_tokens=1).token_ids


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"run: pip install 'feather-edge\[openvino\]'"):
        create_backend("openvino")


def test_a_broken_file(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=r"openvino cannot load .*broken.onnx: .+") as caught:
        OpenVinoBackend().open(tmp_path / "broken.onnx", bundle.vision_encoder)
    assert "\n" not in str(caught.value)


def test_inputs_that_do_not_fit(bundle: Bundle) -> None:
    spec = bundle.vision_encoder
    backend = OpenVinoBackend()
    graph = backend.open(bundle.path / spec.file, spec)
    with pytest.raises(BackendError, match="openvino failed in graph vision_encoder: .+"):
        graph.run({"pixel_values": backend.upload(np.ones((1, 2, 3, 4), np.float32))})


def test_both_of_numpys_types_of_64_bits_are_taken() -> None:
    backend = OpenVinoBackend()
    for kind in (np.int64, np.longlong):
        values = np.array([[1, 2]], kind)
        assert backend.download(backend.upload(values)).tolist() == [[1, 2]]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("where", ["../../outside", "/outside", "link"])
def test_weights_from_outside_the_bundle_are_refused(
    bundle: Bundle, tmp_path: Path, name: str, where: str
) -> None:
    folder = shutil.copytree(bundle.path, tmp_path / "bundle")
    weights = shutil.copy(folder / "onnx" / "decoder_0.onnx_data", tmp_path / "outside")
    file = folder / "onnx" / "decoder_0.onnx"
    model = onnx.load(file, load_external_data=False)
    elsewhere = {"/outside": str(weights)}.get(where, where)
    for entry in (entry for t in model.graph.initializer for entry in t.external_data):
        if entry.key == "location" and entry.value == "decoder_0.onnx_data":
            entry.value = elsewhere
    onnx.save(model, file)
    seal_files(folder)
    if where == "link":
        (folder / "onnx" / "link").symlink_to(weights)
        with pytest.raises(BundleError, match="leads out of the bundle"):
            Session.open(folder, backend=name)
        return
    with pytest.raises(BackendError, match=rf"^{name} cannot load .*decoder_0.onnx: "):
        Session.open(folder, backend=name)
