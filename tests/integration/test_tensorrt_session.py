"""Whole answers over a fake device: the same as ONNX Runtime's, and nothing misused or left.

No GPU and no TensorRT is involved; see ``support.fake_tensorrt`` for what this proves.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from support.fake_engines import TARGET, bundle_with_engines

from feather_edge.cli import main
from feather_edge.errors import BackendError
from feather_edge.pruning import Pruning
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime.backends import FakeBackend
from feather_edge.runtime.session import Session

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory

    from feather_edge.bundle import Bundle


@pytest.fixture
def exported(bundles: BundleFactory) -> Bundle:
    return bundles(num_layers=4, recipe=ExportRecipe(opset="all")).bundle


def picture(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.usefixtures("trt")
@pytest.mark.parametrize("opset", [18, 23, 24])
@pytest.mark.parametrize(
    "pruning",
    [
        Pruning(criterion="feather", keep_ratio=(0.5, 0.25)),
        Pruning(criterion="feather", keep_ratio=(0.4,), selection="union"),
        Pruning(criterion="none"),
    ],
    ids=["fill", "union", "none"],
)
def test_answers_are_those_of_onnx_runtime(
    exported: Bundle, tmp_path: Path, opset: int, pruning: Pruning
) -> None:
    bundle = bundle_with_engines(exported, tmp_path / "bundle", opset=opset)
    asked = {"images": picture(), "prompt": "hi", "pruning": pruning, "max_new_tokens": 6}
    with Session.open(bundle, backend="onnxruntime") as session:
        expected = session.generate(**asked)
    with Session.open(bundle, backend="tensorrt", target=TARGET) as session:
        found = session.generate(**asked)
    assert found.token_ids == expected.token_ids
    for stage, reference in zip(found.stages, expected.stages, strict=True):
        np.testing.assert_array_equal(stage.kept_indices, reference.kept_indices)
    assert (found.backend, found.device) == ("tensorrt", "cuda")


def test_a_target_needs_a_backend_by_name(exported: Bundle) -> None:
    with pytest.raises(BackendError, match="target x goes with a backend's name"):
        Session.open(exported, backend=FakeBackend(token_ids=[1]), target="x")


@pytest.mark.usefixtures("trt")
@pytest.mark.parametrize("opset", [18, 24])
def test_several_requests_and_two_sessions_share_nothing(
    exported: Bundle, tmp_path: Path, opset: int
) -> None:
    bundle = bundle_with_engines(exported, tmp_path / "bundle", opset=opset)
    with (
        Session.open(bundle, backend="tensorrt") as one,
        Session.open(bundle, backend="tensorrt") as two,
    ):
        streams = [
            session.stream(picture(seed), "hi", max_new_tokens=5)
            for seed, session in enumerate((one, two, one))
        ]
        interleaved = [[next(stream).token_id for stream in streams] for _ in range(5)]
    with Session.open(bundle, backend="onnxruntime") as session:
        for seed in range(3):
            expected = session.generate(picture(seed), "hi", max_new_tokens=5).token_ids
            assert [step[seed] for step in interleaved] == list(expected)


def test_the_command_runs_engines(trt: Any, exported: Bundle, tmp_path: Path) -> None:
    bundle = bundle_with_engines(exported, tmp_path / "bundle")
    picture().save(tmp_path / "a.png")
    ask = ["run", str(bundle.path), "--image", str(tmp_path / "a.png"), "--prompt", "hi"]
    ask += ["--max-new-tokens", "3", "--backend", "tensorrt", "--target", TARGET, "--json"]
    result = CliRunner().invoke(main, ask)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["backend"] == "tensorrt"
    assert trt.contexts


@pytest.mark.parametrize("opset", [18, 24])
def test_one_profile_for_prefill_and_decode(
    trt: Any, exported: Bundle, tmp_path: Path, opset: int
) -> None:
    bundle = bundle_with_engines(exported, tmp_path / "bundle", one_profile=True, opset=opset)
    answers = []
    for backend in ("onnxruntime", "tensorrt"):
        with Session.open(bundle, backend=backend) as session:
            answers.append(session.generate(picture(), "hi", max_new_tokens=4).token_ids)
    assert answers[0] == answers[1]
    assert {run.profile for context in trt.contexts for run in context.executions} == {0}
