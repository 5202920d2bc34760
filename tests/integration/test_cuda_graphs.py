"""Caches in place and captured decode steps, over whole answers on a fake device.

The fake device refuses what a real one would: allocating or waiting during a capture, capturing
before a run with the same shapes, and replaying when memory was freed or the context was told
something else. What an engine gives is ONNX Runtime's answer; no GPU is involved.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from support.fake_engines import CAPACITY, TARGET, bundle_with_engines
from support.fake_tensorrt import _Engine, _ExecutionContext, fake_tensorrt

from feather_edge.cli import main
from feather_edge.errors import BackendError
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime import kv_cache
from feather_edge.runtime.backends import FakeBackend, create_backend
from feather_edge.runtime.session import Session

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory
    from support.fake_cuda import FakeGpu

    from feather_edge.bundle import Bundle

NUM_SEGMENTS = 3
NUM_TOKENS = 12


@pytest.fixture
def exported(bundles: BundleFactory) -> Bundle:
    return bundles(num_layers=4, recipe=ExportRecipe(opset="all")).bundle


@pytest.fixture
def bundle(exported: Bundle, tmp_path: Path) -> Bundle:
    return bundle_with_engines(exported, tmp_path / "bundle", opset=24)


def picture(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def answer(session: Session, seed: int = 0, **options: Any) -> tuple[int, ...]:
    asked = {"max_new_tokens": NUM_TOKENS, **options}
    return session.generate(picture(seed), "hi", **asked).token_ids


def reference(bundle: Bundle, seed: int = 0) -> tuple[int, ...]:
    with Session.open(bundle, backend="onnxruntime") as session:
        return answer(session, seed)


def num_captures(gpu: FakeGpu) -> int:
    return gpu.counts.get("cuGraphInstantiateWithFlags", 0)


@pytest.mark.usefixtures("trt")
def test_steps_are_captured_once_and_replayed(bundle: Bundle, gpu: FakeGpu) -> None:
    expected = [reference(bundle, seed) for seed in range(3)]
    with Session.open(bundle, backend="tensorrt") as session:
        for seed in range(3):
            assert answer(session, seed) == expected[seed]
        assert num_captures(gpu) == NUM_SEGMENTS, "later requests find their memory again"
        steps = 3 * (NUM_TOKENS - 1)
        assert gpu.counts["cuGraphLaunch"] > NUM_SEGMENTS * (steps - 4)
        assert session.notes == ()
        assert gpu.counts["cuGraphDestroy"] == NUM_SEGMENTS
    del session


@pytest.mark.usefixtures("trt")
def test_decode_steps_allocate_nothing(
    bundle: Bundle, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session.open(bundle, backend="tensorrt") as session:
        stream = session.stream(picture(), "hi", max_new_tokens=NUM_TOKENS)
        counts = [gpu.counts["cuMemAlloc_v2"] for _ in stream]
    assert len(set(counts[2:])) == 1


def test_caches_stay_where_they_are(bundle: Bundle, trt: Any) -> None:
    with Session.open(bundle, backend="tensorrt") as session:
        answer(session)
    places: dict[str, set[int]] = {}
    for context in trt.contexts:
        for run in context.executions:
            for name, address in run.addresses.items():
                if name.startswith(("past_key_values", "present")):
                    assert run.shapes[name][2] == CAPACITY
                    cache = name.replace("past_key_values", "present")
                    places.setdefault(cache, set()).add(address)
    assert len(places) == 4 * 2
    assert all(len(addresses) == 1 for addresses in places.values())


@pytest.mark.usefixtures("trt")
def test_a_step_that_sees_more_is_captured_anew(
    bundle: Bundle, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_cache, "SEEN_STEP", 4)
    with Session.open(bundle, backend="tensorrt") as session:
        assert answer(session) == reference(bundle)
    assert num_captures(gpu) > NUM_SEGMENTS
    assert gpu.counts["cuGraphLaunch"] > 0


@pytest.mark.usefixtures("trt")
def test_interleaved_requests_have_caches_of_their_own(bundle: Bundle) -> None:
    with Session.open(bundle, backend="tensorrt") as session:
        streams = [
            session.stream(picture(seed), "hi", max_new_tokens=NUM_TOKENS) for seed in range(2)
        ]
        steps = [[token.token_id for token in pair] for pair in zip(*streams, strict=True)]
    for seed in range(2):
        assert [pair[seed] for pair in steps] == list(reference(bundle, seed))


@pytest.mark.usefixtures("trt")
def test_what_cannot_be_captured_runs_as_before_and_says_so(
    bundle: Bundle, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = _ExecutionContext.execute_async_v3

    def uncapturable(self: Any, stream: int) -> bool:
        if gpu.is_capturing(stream):
            gpu.invalidate()
        return run(self, stream)

    monkeypatch.setattr(_ExecutionContext, "execute_async_v3", uncapturable)
    expected = [
        f"decode steps of decoder_{index} run without a CUDA graph: the CUDA driver failed in "
        f"cuStreamEndCapture: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED (901)"
        for index in range(NUM_SEGMENTS)
    ]
    with Session.open(bundle, backend="tensorrt") as session:
        for seed in range(2):
            assert answer(session, seed) == reference(bundle, seed)
        assert session.last_result is not None
        assert list(session.last_result.notes) == expected
        assert session.last_result.to_dict()["notes"] == expected
    assert gpu.counts["cuStreamBeginCapture_v2"] == NUM_SEGMENTS, "nobody tries again"
    picture().save(tmp_path / "a.png")
    ask = ["run", str(bundle.path), "--image", str(tmp_path / "a.png"), "--prompt", "hi"]
    result = CliRunner().invoke(main, [*ask, "--max-new-tokens", "6", "--backend", "tensorrt"])
    assert result.exit_code == 0, result.output
    verification, *notes = result.stderr.splitlines()
    assert verification.startswith("not verified: run: feather-edge verify")
    assert notes == [f"note: {note}" for note in expected]


@pytest.mark.usefixtures("trt")
def test_tensorrt_may_refuse_during_a_capture(
    bundle: Bundle, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _ExecutionContext.execute_async_v3
    monkeypatch.setattr(
        _ExecutionContext,
        "execute_async_v3",
        lambda self, stream: not gpu.is_capturing(stream) and run(self, stream),
    )
    with Session.open(bundle, backend="tensorrt") as session:
        assert answer(session) == reference(bundle)
        assert (
            "without a CUDA graph: tensorrt could not run in graph decoder_0" in session.notes[0]
        )
    assert gpu.counts.get("cuGraphLaunch", 0) == 0


def test_the_off_switch(trt: Any, bundle: Bundle, gpu: FakeGpu, tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    ask = ["run", str(bundle.path), "--image", str(tmp_path / "a.png"), "--prompt", "hi", "--json"]
    options = ["--backend", "tensorrt", "--no-cuda-graphs", "--max-new-tokens", "6"]
    result = CliRunner().invoke(main, [*ask, *options])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["notes"] == ["decode steps run without CUDA graphs, as asked"]
    assert num_captures(gpu) == 0
    refused = CliRunner().invoke(main, [*ask, "--no-cuda-graphs"])
    assert refused.exit_code == 1
    assert "CUDA graphs are of engines, and backend auto runs ONNX graphs" in refused.stderr
    with pytest.raises(BackendError, match="cuda_graphs goes with a backend's name"):
        Session.open(bundle, backend=FakeBackend(token_ids=[1]), cuda_graphs=False)


@pytest.mark.usefixtures("trt")
def test_caches_that_grow_are_never_captured(
    exported: Bundle, tmp_path: Path, gpu: FakeGpu
) -> None:
    bundle = bundle_with_engines(exported, tmp_path / "grown", opset=23)
    with Session.open(bundle, backend="tensorrt") as session:
        for _ in range(2):
            answer(session)
        assert session.notes == ()
    assert num_captures(gpu) == 0
    with pytest.raises(BackendError, match="decoder_0 has caches that grow, so none of its steps"):
        Session.open(bundle, backend="tensorrt", cuda_graphs=False)


def test_tensorrt_rtx_is_not_captured_and_says_why(
    exported: Bundle, tmp_path: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = fake_tensorrt(gpu, version="1.7.1.116", name="tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    bundle = bundle_with_engines(
        exported, tmp_path / "rtx", target="rtx", opset=24, built_with="1.7.1.116",
        tensorrt_version="1.7.1.116", backend="tensorrt-rtx", device_name=None,
        compute_capabilities=("8.7",),
    )  # fmt: skip
    with Session.open(bundle, backend="tensorrt-rtx") as session:
        assert answer(session) == reference(bundle)
        (note,) = session.notes
    assert "TensorRT-RTX changes kernels while it runs" in note
    with pytest.raises(BackendError, match="nothing is captured with tensorrt-rtx anyway"):
        Session.open(bundle, backend="tensorrt-rtx", cuda_graphs=False)
    assert num_captures(gpu) == 0


@pytest.mark.usefixtures("trt")
def test_an_answer_that_outgrows_the_capacity(bundle: Bundle) -> None:
    limit = CAPACITY + 1
    with (
        Session.open(bundle, backend="tensorrt") as session,
        pytest.raises(BackendError) as error,
    ):
        answer(session, max_new_tokens=limit)
    assert str(error.value) == (
        f"the KV cache of graph decoder_0 has room for {CAPACITY} tokens, but {CAPACITY + 1} are "
        f"asked for; shorten the prompt or the answer, or raise build-engine --max-cache-capacity"
    )


@pytest.mark.usefixtures("trt")
def test_an_engine_that_copies_its_caches_is_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Engine, "get_aliased_input_tensor", lambda *_: None)
    backend = create_backend("tensorrt", bundle, target=TARGET)
    spec = bundle.decoders[0]
    with pytest.raises(BackendError, match="writes present.0.key over no input, not over past_"):
        backend.open(bundle.path / spec.file, spec)


@pytest.mark.usefixtures("trt")
def test_verify_replays_recorded_caches_in_place(bundle: Bundle) -> None:
    command = ["verify", str(bundle.path), "--backend", "tensorrt", "--json"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    (report,) = json.loads(result.stdout)["reports"]
    assert report["reference"] == "onnxruntime with opset 23"
    phases = {t["phase"] for t in report["tensors"] if t["tensor"] == "present.0.key"}
    assert phases == {"prefill", "decode"}
    assert report["notes"] == []
