"""How engines are found, refused, driven and let go, on a fake device.

What an engine computes is not the matter here; ``tests/integration/test_tensorrt_session.py``
compares whole answers.
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.fake_engines import CAPACITY, MAX_ROWS, TARGET, bundle_with_engines, write_engines
from support.fake_tensorrt import fake_tensorrt
from support.fake_tensorrt_builder import DataType

from feather_edge.errors import BackendError
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime.backends import create_backend
from feather_edge.runtime.backends.tensorrt import TensorRTBackend

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory
    from support.fake_cuda import FakeGpu

    from feather_edge.bundle import Bundle
    from feather_edge.runtime.backends.base import Graph

pytestmark = pytest.mark.usefixtures("trt")


@pytest.fixture
def exported(bundles: BundleFactory) -> Bundle:
    return bundles(num_layers=4, recipe=ExportRecipe(opset="all")).bundle


@pytest.fixture
def bundle(exported: Bundle, tmp_path: Path) -> Bundle:
    return bundle_with_engines(exported, tmp_path / "bundle")


def open_graph(bundle: Bundle, backend: TensorRTBackend, index: int = 0) -> Graph:
    spec = bundle.decoders[index]
    return backend.open(bundle.path / spec.file, spec)


def feeds(
    bundle: Bundle, backend: TensorRTBackend, *, rows: int, past: int, kept: int
) -> dict[str, Any]:
    """Return inputs of the first segment, for ``rows`` new positions after ``past``."""
    sizes = {"batch": 1, "sequence": rows, "past_sequence": past, "total_sequence": past + rows}
    rng = np.random.default_rng(rows + past)
    inputs = {}
    for tensor in bundle.decoders[0].inputs:
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in tensor.shape)
        inputs[tensor.name] = rng.normal(size=shape).astype(tensor.dtype)
    inputs["num_kept"] = np.array([kept])
    inputs["attention_mask"] = np.ones((1, 1, rows, past + rows), np.bool_)
    return {name: backend.upload(array) for name, array in inputs.items()}


def refusal(bundle: Bundle, **options: Any) -> str:
    with pytest.raises(BackendError) as error:
        open_graph(bundle, TensorRTBackend(bundle, name="tensorrt", **options))
    return str(error.value)


# Which engines?


def test_the_only_target_needs_no_name(bundle: Bundle) -> None:
    open_graph(bundle, TensorRTBackend(bundle, name="tensorrt"))


def test_several_targets_need_a_choice(bundle: Bundle) -> None:
    write_engines(bundle, target="orin-nano-8gb")
    assert refusal(bundle) == (
        f"{bundle.path} has engines for agx-orin-64gb, orin-nano-8gb; choose one with --target"
    )
    open_graph(bundle, TensorRTBackend(bundle, name="tensorrt", target=TARGET))


def test_no_engines_at_all(exported: Bundle) -> None:
    assert refusal(exported) == (
        f"{exported.path} has no engines; build them on the device with: feather-edge "
        f"build-engine {exported.path} --target NAME"
    )


def test_another_target(bundle: Bundle) -> None:
    assert refusal(bundle, target="agx-thor") == (
        f"{bundle.path} has no engines for target agx-thor, only for agx-orin-64gb; build them "
        f"on the device with: feather-edge build-engine {bundle.path} --target agx-thor"
    )


def test_a_graph_without_an_engine(bundle: Bundle) -> None:
    (bundle.path / "engines" / TARGET / "decoder_0.engine").unlink()
    assert f"has no engine of decoder_0 for target {TARGET}; build it with" in refusal(bundle)


# Does it fit?


def refit(bundle: Bundle, **changes: Any) -> str:
    """Change the record of decoder_0 and return how it is refused."""
    file = bundle.path / "engines" / TARGET / "decoder_0.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return refusal(bundle)


@pytest.mark.parametrize(
    ("field", "built", "here"),
    [
        ("graph", "decoder_1", "decoder_0"),
        ("precision", "fp16", "fp32"),
        ("backend", "tensorrt-rtx", "tensorrt"),
        ("tensorrt_version", "10.13.3", "10.3.0"),
        ("device_name", "NVIDIA Thor", "Orin"),
    ],
)
def test_a_misfit_names_field_values_and_command(
    bundle: Bundle, field: str, built: str, here: str
) -> None:
    assert refit(bundle, **{field: built}) == (
        f"the engine of decoder_0 for target {TARGET} does not fit: {field} is {built} in its "
        f"record, but {here} here; rebuild it with: feather-edge build-engine {bundle.path} "
        f"--target {TARGET}"
    )


def test_another_compute_capability(bundle: Bundle) -> None:
    text = refit(bundle, compute_capabilities=["11.0", "12.0"], device_name=None)
    assert "compute_capabilities is 11.0, 12.0 in its record, but 8.7 here" in text


def test_engines_of_another_export(bundle: Bundle) -> None:
    assert "graph_sha256 is 00 in its record, but " in refit(bundle, graph_sha256="00")


def test_a_form_that_the_bundle_lacks(bundle: Bundle) -> None:
    assert "but none here; rebuild" in refit(bundle, opset=20)


def test_a_damaged_record(bundle: Bundle) -> None:
    text = refit(bundle, surprise=1)
    assert "decoder_0.json is no valid record: Object contains unknown field `surprise`" in text
    assert text.endswith(" -f")


def test_a_record_that_says_a_key_twice(bundle: Bundle) -> None:
    file = bundle.path / "engines" / TARGET / "decoder_0.json"
    file.write_text(file.read_text().replace("{", '{"graph": "decoder_1", ', 1))
    assert "is no valid record: key 'graph' stands twice in one object" in refusal(bundle)


def test_a_record_from_outside_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    file = bundle.path / "engines" / TARGET / "decoder_0.json"
    file.rename(tmp_path / "outside.json")
    file.symlink_to(tmp_path / "outside.json")
    assert "lies outside of the bundle, which is never opened" in refusal(bundle)


def test_an_engine_cut_short(bundle: Bundle) -> None:
    with (bundle.path / "engines" / TARGET / "decoder_0.engine").open("ab") as stream:
        stream.truncate(100)
    assert "has 100 bytes, its record says" in refusal(bundle)


def test_what_tensorrt_refuses_is_told(exported: Bundle, tmp_path: Path) -> None:
    bundle = bundle_with_engines(exported, tmp_path / "other", built_with="10.4.0")
    text = refusal(bundle)
    assert text.startswith("tensorrt 10.3.0 cannot load ")
    assert text.endswith("decoder_0.engine: Error Code 6: API Usage Error (bad plan)")


def test_an_engine_of_another_graph(bundle: Bundle) -> None:
    folder = bundle.path / "engines" / TARGET
    wrong = (folder / "decoder_2.engine").read_bytes()
    (folder / "decoder_0.engine").write_bytes(wrong)
    text = refit(bundle, num_bytes=len(wrong))
    assert (
        "the engine of decoder_0 has inputs_embeds as nothing, its graph as input float32" in text
    )


def test_an_engine_of_another_type(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from support.fake_tensorrt import _Engine

    monkeypatch.setattr(_Engine, "get_tensor_dtype", lambda *_: DataType.HALF)
    text = refusal(bundle)
    assert "has inputs_embeds as input float16, its graph as input float32" in text


def test_profiles_that_the_engine_does_not_have(bundle: Bundle) -> None:
    text = refit(bundle, profiles=[])
    assert "the engine of decoder_0 has 2 profiles, its record 0; rebuild it with" in text


# Plugins


def plugin_bundle(bundle: Bundle, content: bytes | None) -> Bundle:
    folder = bundle.path / "engines" / TARGET
    if content is not None:
        (folder / "libplugin.so").write_bytes(content)
    for name in ("decoder_0", "decoder_1"):
        file = folder / f"{name}.json"
        record = json.loads(file.read_text())
        record |= {"plugin": "libplugin.so", "plugin_sha256": hashlib.sha256(b"code").hexdigest()}
        file.write_text(json.dumps(record))
    return bundle


def test_a_plugin_is_loaded_once(bundle: Bundle, trt: Any) -> None:
    plugin_bundle(bundle, b"code")
    backend = TensorRTBackend(bundle, name="tensorrt")
    graphs = [open_graph(bundle, backend, index) for index in (0, 1)]
    assert trt.libraries == [str(bundle.path / "engines" / TARGET / "libplugin.so")]
    assert len(graphs) == 2


def test_a_plugin_is_found_where_it_was_built(
    bundle: Bundle, trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin_bundle(bundle, b"older code")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "engines" / "out").mkdir(parents=True)
    (tmp_path / "engines" / "out" / "libplugin.so").write_bytes(b"code")
    graph = open_graph(bundle, TensorRTBackend(bundle, name="tensorrt"))
    assert trt.libraries == ["engines/out/libplugin.so"]
    del graph


def test_a_plugin_that_is_missing_or_another(bundle: Bundle) -> None:
    plugin_bundle(bundle, None)
    assert "the engine of decoder_0 needs the plugin libplugin.so, which is neither in" in refusal(
        bundle
    )
    plugin_bundle(bundle, b"other code")
    assert "plugin_sha256 is " in refusal(bundle)


def test_a_plugin_that_does_not_load(bundle: Bundle) -> None:
    plugin_bundle(bundle, b"damaged")
    file = bundle.path / "engines" / TARGET / "decoder_0.json"
    record = json.loads(file.read_text())
    record["plugin_sha256"] = hashlib.sha256(b"damaged").hexdigest()
    file.write_text(json.dumps(record))
    assert "tensorrt cannot load the plugin" in refusal(bundle)


# What is missing on this machine?


def test_tensorrt_is_missing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    text = refusal(bundle)
    assert text.startswith("backend tensorrt is not installed (")
    assert text.endswith("pip install 'feather-edge[tensorrt]'")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendError, match=r"pip install 'feather-edge\[rtx\]'"):
        create_backend("tensorrt-rtx", bundle)


def test_tensorrt_rtx_is_the_same_by_another_name(
    exported: Bundle,
    tmp_path: Path,
    gpu: FakeGpu,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = fake_tensorrt(gpu, version="1.7.1.116", name="tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    bundle = bundle_with_engines(
        exported, tmp_path / "rtx", target="rtx", opset=23, built_with="1.7.1.116",
        tensorrt_version="1.7.1.116", backend="tensorrt-rtx", device_name=None,
        compute_capabilities=("8.6", "8.7"),
    )  # fmt: skip
    backend = create_backend("tensorrt-rtx", bundle)
    assert isinstance(backend, TensorRTBackend)
    assert backend.name == "tensorrt-rtx"
    run = open_graph(bundle, backend).run(feeds(bundle, backend, rows=4, past=0, kept=2))
    assert backend.download(run["kept_indices"]).shape == (1, 2)


# Profiles


def test_the_feeds_choose_the_profile(bundle: Bundle, trt: Any) -> None:
    backend = TensorRTBackend(bundle, name="tensorrt")
    graph = open_graph(bundle, backend)
    prefill, decode = trt.contexts
    for rows, past, kept in ((9, 0, 5), (1, 5, 1), (1, 0, 1), (1, 6, 1)):
        backend.download(
            graph.run(feeds(bundle, backend, rows=rows, past=past, kept=kept))["scores"]
        )
    assert [run.shapes["cos"][1] for run in prefill.executions] == [9, 1]
    assert [run.shapes["past_key_values.0.key"][2] for run in decode.executions] == [5, 6]
    assert {run.profile for run in decode.executions} == {1}


@pytest.mark.parametrize(
    ("rows", "past", "kept", "text"),
    [
        (MAX_ROWS + 1, 0, 1, f"of its engine takes [1, 1, 64] to [1, {MAX_ROWS}, 64]"),
        (
            1,
            CAPACITY,
            1,
            f"attention_mask [1, 1, 1, {CAPACITY + 1}], but the profile decode",
        ),
        (2, 5, 1, "the profile decode"),
        (9, 0, 0, "num_kept [0], but the profile prefill of its engine takes [1] to [96]"),
    ],
)
def test_feeds_beyond_every_profile_are_refused(
    bundle: Bundle, rows: int, past: int, kept: int, text: str
) -> None:
    backend = TensorRTBackend(bundle, name="tensorrt")
    graph = open_graph(bundle, backend)
    inputs = feeds(bundle, backend, rows=rows, past=past, kept=kept)
    with pytest.raises(BackendError) as error:
        graph.run(inputs)
    assert str(error.value).startswith("graph decoder_0 got ")
    assert text in str(error.value)
    assert str(error.value).endswith("raise the limits of build-engine")


def test_inputs_are_checked_against_the_contract(bundle: Bundle) -> None:
    backend = TensorRTBackend(bundle, name="tensorrt")
    graph = open_graph(bundle, backend)
    inputs = feeds(bundle, backend, rows=2, past=0, kept=1)
    with pytest.raises(BackendError, match="graph decoder_0 misses input cos"):
        graph.run({name: tensor for name, tensor in inputs.items() if name != "cos"})
    inputs["cos"] = backend.upload(np.zeros((1, 2, 8), np.float64))
    with pytest.raises(BackendError, match="got cos as float64 \\[1, 2, 8\\], but takes float32"):
        graph.run(inputs)


# Memory


def test_a_decode_step_allocates_nothing(bundle: Bundle, gpu: FakeGpu) -> None:
    backend = TensorRTBackend(bundle, name="tensorrt")
    graph = open_graph(bundle, backend)
    inputs = feeds(bundle, backend, rows=9, past=0, kept=5)
    counts = []
    for past in range(9, 20):
        outputs = graph.run(inputs)
        backend.download(outputs["scores"])
        inputs = feeds(bundle, backend, rows=1, past=past, kept=1)
        for part in ("key", "value"):
            inputs[f"past_key_values.0.{part}"] = outputs[f"present.0.{part}"]
        del outputs
        counts.append(gpu.counts["cuMemAlloc_v2"])
    assert len(set(counts[2:])) == 1, "the first two steps meet new sizes of uploads"


def test_caches_alternate_between_two_buffers(bundle: Bundle, trt: Any) -> None:
    backend = TensorRTBackend(bundle, name="tensorrt")
    graph = open_graph(bundle, backend)
    inputs = feeds(bundle, backend, rows=9, past=0, kept=5)
    for past in range(9, 15):
        outputs = graph.run(inputs)
        inputs = feeds(bundle, backend, rows=1, past=past, kept=1)
        for part in ("key", "value"):
            inputs[f"past_key_values.0.{part}"] = outputs[f"present.0.{part}"]
        del outputs
    backend.download(inputs["past_key_values.0.key"])
    runs = trt.contexts[1].executions
    places = [
        {run.addresses[f"{name}.0.{part}"] for part in ("key", "value")}
        for run in runs
        for name in ("past_key_values", "present")
    ]
    for run, (past, present) in zip(
        runs, zip(places[::2], places[1::2], strict=True), strict=True
    ):
        assert not past & present, run
    assert len(set().union(*places)) == 4, "two buffers each for key and value"


def test_a_held_cache_is_not_overwritten(bundle: Bundle) -> None:
    backend = TensorRTBackend(bundle, name="tensorrt")
    graph = open_graph(bundle, backend)
    held = []
    for seed in range(2, 6):
        outputs = graph.run(feeds(bundle, backend, rows=seed, past=0, kept=1))
        held.append((outputs["present.0.key"], backend.download(outputs["present.0.key"])))
    for tensor, values in held:
        np.testing.assert_array_equal(backend.download(tensor), values)


def test_all_contexts_share_one_scratch_memory(bundle: Bundle, trt: Any) -> None:
    backend = TensorRTBackend(bundle, name="tensorrt")
    graphs = [open_graph(bundle, backend, index) for index in range(3)]
    graphs[0].run(feeds(bundle, backend, rows=4, past=0, kept=2))
    graphs[0].run(feeds(bundle, backend, rows=1, past=4, kept=1))
    backend.download(backend.upload(np.zeros(1)))
    backend._memory.synchronise()
    used = {context._memory for context in trt.contexts if context.executions}
    assert len(used) == 1


def test_scratch_memory_grows_with_the_engines(
    bundle: Bundle,
    gpu: FakeGpu,
    trt: Any,
) -> None:
    file = bundle.path / "engines" / TARGET / "decoder_1.engine"
    document = json.loads(file.read_text()) | {"scratch_bytes": 9999}
    file.write_text(json.dumps(document).ljust(file.stat().st_size))
    backend = TensorRTBackend(bundle, name="tensorrt")
    first = open_graph(bundle, backend)
    first.run(feeds(bundle, backend, rows=4, past=0, kept=2))
    second = open_graph(bundle, backend, 1)
    backend.download(first.run(feeds(bundle, backend, rows=4, past=0, kept=2))["scores"])
    assert trt.contexts[0]._memory[1] == 9999
    assert 4096 not in {len(each.values) for each in gpu.allocations.values()}
    del second


# Failures of TensorRT while it runs


@pytest.mark.parametrize(
    ("method", "result", "text"),
    [
        ("set_input_shape", False, "could not take the shape of inputs_embeds in graph decoder_0"),
        ("set_tensor_address", False, "could not take the address of inputs_embeds"),
        ("infer_shapes", ["cos"], "could not infer shapes without cos in graph decoder_0"),
        ("execute_async_v3", False, "could not run in graph decoder_0"),
    ],
)
def test_a_failure_of_tensorrt_is_named(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, method: str, result: object, text: str
) -> None:
    from support.fake_tensorrt import _ExecutionContext

    backend = TensorRTBackend(bundle, name="tensorrt")
    graph = open_graph(bundle, backend)
    monkeypatch.setattr(_ExecutionContext, method, lambda *_: result)
    with pytest.raises(BackendError, match=text):
        graph.run(feeds(bundle, backend, rows=4, past=0, kept=2))


def test_inference_of_shapes_may_raise(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from support.fake_tensorrt import _ExecutionContext

    backend = TensorRTBackend(bundle, name="tensorrt")
    graph = open_graph(bundle, backend)

    def fail(_: object) -> None:
        raise RuntimeError("infer_shapes error code: -1")

    monkeypatch.setattr(_ExecutionContext, "infer_shapes", fail)
    with pytest.raises(BackendError, match=r"infer shapes \(infer_shapes error code: -1\)"):
        graph.run(feeds(bundle, backend, rows=4, past=0, kept=2))


def test_an_engine_without_room(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from support.fake_tensorrt import _Engine

    monkeypatch.setattr(_Engine, "create_execution_context", lambda *_: None)
    assert refusal(bundle) == "tensorrt has no room for an engine"


def test_an_engine_that_does_not_know_its_outputs(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from support.fake_tensorrt import _ExecutionContext

    monkeypatch.setattr(_ExecutionContext, "get_tensor_shape", lambda *_: (1, -1))
    assert "does not know the shape of present.0.key before it runs" in refusal(bundle)


def test_a_run_nobody_waited_for_is_let_go_cleanly(bundle: Bundle) -> None:
    backend = TensorRTBackend(bundle, name="tensorrt")
    graph = open_graph(bundle, backend)
    graph.run(feeds(bundle, backend, rows=4, past=0, kept=2))
