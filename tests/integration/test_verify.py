"""`feather-edge verify`: what really runs here is ONNX Runtime, form against form.

Engines run on the fake device, which shows that the command drives them, and that it finds what
is wrong with one; it says nothing about TensorRT's numerics.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from PIL import Image
from support.fake_engines import TARGET, bundle_with_engines
from support.sealing import seal_files

from feather_edge.bundle import Bundle
from feather_edge.cli import main
from feather_edge.errors import RequestError
from feather_edge.recipes import ExportRecipe
from feather_edge.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory

BIAS = "layers.1/self_attn/residual"


@pytest.fixture
def exported(bundles: BundleFactory) -> Bundle:
    return bundles(num_layers=4, recipe=ExportRecipe(opset="all")).bundle


def run(*arguments: str | Path, status: int = 0) -> Any:
    result = CliRunner().invoke(main, ["verify", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result


def test_both_forms_agree(exported: Bundle) -> None:
    result = run(exported.path, "--backend", "onnxruntime", "--json")
    (report,) = json.loads(result.stdout)["reports"]
    assert report["tested"] == "onnxruntime with opset 18"
    assert report["reference"] == "onnxruntime with opset 23"
    assert report["first_bad"] is None
    assert {t["graph"] for t in report["tensors"]} == {g.name for g in exported.manifest.graphs}
    assert {t["phase"] for t in report["tensors"]} == {"images", "prefill", "decode"}
    assert {k["overlap"] for k in report["kept"]} == {1.0}
    for answer in report["answers"]:
        assert answer["num_equal_tokens"] == answer["num_tokens"]
        assert answer["overlaps"] == [1.0, 1.0]


def test_own_picture_and_question(exported: Bundle, tmp_path: Path) -> None:
    picture = tmp_path / "mine.png"
    pixels = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture)
    ask = ("--image", picture, "--prompt", "where?")
    out = run(exported.path, "--backend", "onnxruntime", *ask).stdout
    assert "onnxruntime with opset 18 against onnxruntime with opset 23" in out
    assert "mine.png: " in out
    assert "Same inputs, graph by graph: the worst output of each" in out
    wrong = run(exported.path, "--backend", "onnxruntime", "--image", picture, status=2)
    assert "--image and --prompt go together" in wrong.stderr


def spoilt(bundle: Bundle, folder: Path, value: float) -> Bundle:
    """Return a copy whose opset 18 form of decoder_1 adds ``value`` in one layer."""
    shutil.copytree(bundle.path, folder)
    file = folder / "onnx" / "decoder_1.opset18.onnx"
    model = ir.load(file)
    (node,) = [node for node in model.graph if node.name == BIAS]
    shift = ir.Value(
        name="shift", const_value=ir.tensor(np.full(64, value, np.float32), name="shift")
    )
    model.graph.initializers["shift"] = shift
    shift.type, shift.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([64])
    (output,) = node.outputs
    users = list(output.uses())
    added = ir.node("Add", [output, shift], name="spoil")
    added.outputs[0].name = "spoilt"
    model.graph.insert_after(node, added)
    for user, index in users:
        user.replace_input_with(index, added.outputs[0])
    ir.save(model, file)
    seal_files(folder)
    return Bundle.open(folder)


def test_the_layer_that_differs_is_found(exported: Bundle, tmp_path: Path) -> None:
    bundle = spoilt(exported, tmp_path / "spoilt", value=5.0)
    result = run(bundle.path, "--backend", "onnxruntime", "--layers", status=1)
    assert "layers.0/mlp/residual/output" in result.stdout
    assert (
        "Error: onnxruntime with opset 18 differs from onnxruntime with opset 23: "
        "layers.1/mlp/residual/output of decoder_1 (prefill, 00.png) is the first with a cosine "
        "below 0.9999: 0."
    ) in result.stderr
    run(bundle.path, "--backend", "onnxruntime", "--fail-below", "-1", "--fail-below-overlap", "0")


def test_a_value_that_is_no_number_is_named_where_it_appears(
    exported: Bundle, tmp_path: Path
) -> None:
    bundle = spoilt(exported, tmp_path / "spoilt", value=np.inf)
    result = verify(bundle, backend="onnxruntime", layers=True)
    assert result.first_bad is not None
    assert result.first_bad.graph == "decoder_1"
    assert result.first_bad.tensor == "layers.1/mlp/residual/output"
    assert result.first_bad.num_not_finite > 0
    assert {answer.failure is None for answer in result.answers} == {False}


@pytest.mark.usefixtures("trt")
def test_engines_are_compared_the_same_way(exported: Bundle, tmp_path: Path) -> None:
    bundle = bundle_with_engines(exported, tmp_path / "bundle")
    result = run(bundle.path, "--backend", "tensorrt", "--target", TARGET, "--json")
    (report,) = json.loads(result.stdout)["reports"]
    assert report["tested"] == f"tensorrt for {TARGET}"
    assert report["first_bad"] is None
    assert all(answer["num_equal_tokens"] == answer["num_tokens"] for answer in report["answers"])


@pytest.mark.usefixtures("trt")
def test_a_wrong_engine_is_found(exported: Bundle, tmp_path: Path) -> None:
    bundle = bundle_with_engines(spoilt(exported, tmp_path / "spoilt", value=5.0), tmp_path / "b")
    result = run(bundle.path, "--backend", "tensorrt", status=1)
    assert (
        "Error: tensorrt for agx-orin-64gb differs from onnxruntime with opset 23: "
        in result.stderr
    )
    assert " of decoder_1 (prefill, 00.png) is the first with a cosine below" in result.stderr


def refused(bundle: Bundle, **options: Any) -> str:
    with pytest.raises(RequestError) as error:
        verify(bundle, **options)
    return str(error.value)


def test_what_cannot_be_compared(exported: Bundle, bundles: BundleFactory) -> None:
    assert "layers of tensorrt cannot be compared" in refused(
        exported, backend="tensorrt", layers=True
    )
    assert "opset is for onnxruntime" in refused(exported, backend="tensorrt", opset=18)
    assert refused(exported, backend="onnxruntime", opset=23) == (
        "opset 23 cannot be compared with the reference, opset 23; choose 18, 24"
    )
    single = bundles(num_layers=4, recipe=ExportRecipe(opset="23")).bundle
    assert "has its graphs in opset 23 alone, so there is nothing to compare" in refused(
        single, backend="onnxruntime"
    )


def test_recorded_gathers_on_the_host_pass_through(exported: Bundle) -> None:
    from feather_edge.evaluate.recording import Recorder
    from feather_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend

    recorder = Recorder(OnnxRuntimeBackend(device="cpu"))
    tensor = recorder.upload(np.arange(6, dtype=np.float32).reshape(1, 3, 2))
    taken = recorder.download(recorder.take_rows(tensor, np.array([0, 2])))
    assert taken.tolist() == [[[0, 1], [4, 5]]]


def test_caches_in_place_agree_with_caches_that_grow(exported: Bundle) -> None:
    result = run(exported.path, "--backend", "onnxruntime", "--opset", "24", "--json")
    (report,) = json.loads(result.stdout)["reports"]
    assert report["tested"] == "onnxruntime with opset 24"
    assert report["reference"] == "onnxruntime with opset 23"
    assert report["first_bad"] is None
    phases = {t["phase"] for t in report["tensors"] if t["tensor"] == "present.3.value"}
    assert phases == {"prefill", "decode"}
    run(exported.path, "--backend", "onnxruntime", "--opset", "24", "--layers")


@pytest.mark.usefixtures("trt")
def test_the_reference_may_have_caches_in_place_too(
    bundles: BundleFactory, tmp_path: Path
) -> None:
    only = bundles(num_layers=4, recipe=ExportRecipe(opset="24")).bundle
    bundle = bundle_with_engines(only, tmp_path / "bundle", opset=24)
    result = run(bundle.path, "--backend", "tensorrt", "--target", TARGET)
    assert f"tensorrt for {TARGET} against onnxruntime with opset 24" in result.stdout


@pytest.mark.usefixtures("trt")
def test_engines_with_less_room_than_the_reference_are_refused(
    exported: Bundle, tmp_path: Path
) -> None:
    bundle = bundle_with_engines(exported, tmp_path / "bundle", opset=24)
    question = "where is it " * 30
    picture = tmp_path / "a.png"
    Image.new("RGB", (30, 30)).save(picture)
    ask = ("--image", picture, "--prompt", question)
    result = run(bundle.path, "--backend", "tensorrt", "--target", TARGET, *ask, status=1)
    assert "but the profile prefill of its engine takes" in result.stderr


def test_files_are_held_against_their_hashes(
    exported: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(exported.path, tmp_path / "bundle")
    files = exported.manifest.files
    document = json.loads(run(folder, "--files", "--json").stdout)
    assert document["num_files"] == len(files)
    assert document["num_bytes"] == sum(record.num_bytes for record in files.values())
    assert "all as they were exported" in run(folder, "--files").stdout

    monkeypatch.setattr("feather_edge.bundle.HASHED_BYTES", 0)
    weights = folder / "onnx" / "decoder_1.onnx_data"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 4
    weights.write_bytes(content)
    refused = run(folder, "--files", status=1)
    assert "decoder_1.onnx_data is not the file that was exported" in refused.stderr
