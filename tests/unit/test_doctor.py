"""The doctor: calls working only what ran, and names what to install for the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.fake_engines import TARGET, bundle_with_engines

from feather_edge import __version__, _probes, doctor
from feather_edge.doctor import Examined, Loading
from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from support.bundles import BundleFactory

PLATFORMS = Path(__file__).parents[1] / "support" / "platforms"


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Pretend that these packages are installed and no others."""
    found: Mapping[str, str] = {name.replace("_", "-"): v for name, v in versions.items()}
    monkeypatch.setattr(doctor, "package_version", found.get)


def probed(monkeypatch: pytest.MonkeyPatch, **failures: str) -> None:
    """Pretend that these trials fail and all others succeed."""
    found = {name.replace("_", "-"): text for name, text in failures.items()}
    monkeypatch.setattr(doctor, "_probe", found.get)


def backend(name: str, device: str, *, root: Path = Path("/")) -> Examined:
    report = doctor.examine(root=root)
    (found,) = [b for b in report.backends if (b.name, b.device) == (name, device)]
    return found


def test_this_machine() -> None:
    report = doctor.examine()
    assert report.version == __version__
    assert report.python == ".".join(map(str, sys.version_info[:3]))
    assert report.packages["onnxruntime"]
    states = {(each.name, each.device): each.state for each in report.backends}
    assert states["onnxruntime", "cpu"] == "works"
    assert states["reference", "cpu"] == "works"
    assert states["fake", "none"] == "works"


def test_nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    assert backend("onnxruntime", "cpu").remedy == "pip install 'feather-edge[ort]'"
    assert backend("onnxruntime", "cuda").remedy == "pip install 'feather-edge[gpu]'"
    reference = backend("reference", "cpu")
    assert reference.state == "missing"
    assert reference.remedy == "only for verification: pip install 'feather-edge[torch]'"


def test_the_gpu_build_serves_the_cpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, onnxruntime_gpu="1.23.0")
    probed(
        monkeypatch, onnxruntime_cuda="RuntimeError: CUDAExecutionProvider could not be started"
    )
    assert backend("onnxruntime", "cpu") == Examined(
        name="onnxruntime", device="cpu", state="works"
    )
    cuda = backend("onnxruntime", "cuda")
    assert cuda.state == "fails"
    assert cuda.remedy == "RuntimeError: CUDAExecutionProvider could not be started"


def test_a_broken_reference_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, torch="2.13.0", transformers="5.23.0")
    probed(monkeypatch, reference="ImportError: libgomp.so.1")
    assert backend("reference", "cpu").remedy == "ImportError: libgomp.so.1"


def test_openvino_is_missing_or_runs_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    _probes.run_openvino()
    installed(monkeypatch, openvino="2026.4")
    probed(monkeypatch)
    assert backend("openvino", "cpu").state == backend("openvino-bf16", "cpu").state == "works"
    lacking = "backend openvino-bf16 needs a processor that multiplies in bfloat16"
    probed(monkeypatch, openvino_bf16=lacking)
    found = backend("openvino-bf16", "cpu")
    assert (found.state, found.remedy) == ("missing", lacking)
    installed(monkeypatch)
    assert backend("openvino", "cpu").remedy == "pip install 'feather-edge[openvino]'"


def test_tensorrt_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    probed(monkeypatch)
    found = backend("tensorrt", "cuda", root=PLATFORMS / "jetpack6")
    assert found.state == "missing"
    assert found.remedy == (
        "the system has TensorRT 10.3.0.30, which this virtual environment does not see: "
        "python3 -m venv --system-site-packages"
    )
    assert backend("tensorrt-rtx", "cuda").remedy == "pip install 'feather-edge[rtx]'"


def test_a_tensorrt_that_does_not_fit_jetpack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    installed(monkeypatch, tensorrt="10.13.3")
    probed(monkeypatch)
    found = backend("tensorrt", "cuda", root=PLATFORMS / "jetpack6")
    assert found.state == "mismatched"
    assert "JetPack 6.2 has 10.3.0.30: pip uninstall tensorrt" in (found.remedy or "")


# A bundle.


def test_a_bundle_that_loads(bundles: BundleFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bundles(num_layers=2, recipe=ExportRecipe(stages=(1,), opset="23")).bundle.path
    _probes.load_bundle(str(path))
    monkeypatch.setattr(doctor, "_probe", lambda *_: None)
    (loading,) = doctor.examine(path).bundle
    assert loading.verification is not None
    assert loading.verification.state == "not verified"
    assert loading == Loading(
        backend="onnxruntime", target=None, failure=None, verification=loading.verification
    )


def test_a_bundle_that_does_not_load(tmp_path: Path) -> None:
    (loading,) = doctor.examine(tmp_path / "none").bundle
    assert loading.failure is not None
    assert loading.failure.startswith(f"{tmp_path / 'none'} is not a bundle")


@pytest.mark.usefixtures("trt")
def test_engines_are_loaded_for_every_target(
    bundles: BundleFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = bundles(num_layers=4, recipe=ExportRecipe(stages=(1, 3), precision="fp16"))
    bundle = bundle_with_engines(exported.bundle, tmp_path / "bundle")
    tried: list[tuple[str, ...]] = []
    monkeypatch.setattr(doctor, "_probe", lambda *arguments: tried.append(arguments))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())

    loadings = doctor.examine(bundle.path).bundle

    assert [(each.backend, each.target) for each in loadings] == [
        ("onnxruntime", None), ("tensorrt", TARGET),
    ]  # fmt: skip
    assert ("engines", str(bundle.path), "tensorrt", TARGET) in tried
    _probes.load_engines(str(bundle.path), "tensorrt", TARGET)
    (bundle.path / "engines" / TARGET / "vision_encoder.json").unlink()
    assert "has no engine of vision_encoder" in (
        doctor.examine(bundle.path).bundle[1].failure or ""
    )


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_tensorrt_works_when_it_ran_an_engine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    probed(monkeypatch)
    assert backend(name, "cuda") == Examined(name=name, device="cuda", state="works")
    probed(monkeypatch, **{name.replace("-", "_"): "BackendError: no driver"})
    assert backend(name, "cuda").state == "fails"
    assert backend(name, "cuda").remedy == "BackendError: no driver"


@pytest.mark.usefixtures("trt")
def test_the_trial_of_tensorrt_runs_an_engine() -> None:
    _probes.run_tensorrt("tensorrt")


def test_a_trial_of_tensorrt_that_fails(trt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from support.fake_tensorrt import _ExecutionContext
    from support.fake_tensorrt_builder import Builder

    with monkeypatch.context() as patch:
        patch.setattr(Builder, "build_serialized_network", lambda *_: None)
        with pytest.raises(RuntimeError, match=r"tensorrt 10\.3\.0 builds no engine"):
            _probes.run_tensorrt("tensorrt")
    monkeypatch.setattr(_ExecutionContext, "execute_async_v3", lambda *_: False)
    with pytest.raises(RuntimeError, match="tensorrt computed a wrong result"):
        _probes.run_tensorrt("tensorrt")


def test_two_builds_at_once_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, onnxruntime="1.23.0", onnxruntime_gpu="1.23.0")
    probed(monkeypatch)
    (note,) = doctor.examine().notes
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in note


def test_an_unknown_package_has_no_version() -> None:
    assert doctor.package_version("no-such-package-anywhere") is None


# Trials in a process of their own.


def test_a_trial_that_fails_says_why() -> None:
    failure = doctor._probe("onnxruntime-cuda")
    assert failure is not None
    assert failure.startswith("RuntimeError: this build has no CUDAExecutionProvider")


@pytest.mark.parametrize(
    ("status", "stderr", "reason"),
    [
        (-4, "", "ended with status -4"),
        (1, "warning\nValueError: no\n", "ValueError: no"),
        (0, "warning\n", None),
    ],
)
def test_how_a_trial_ends(
    status: int, stderr: str, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.CompletedProcess([], status, "", stderr)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert doctor._probe("reference") == reason


def test_a_trial_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object, timeout: float, **__: object) -> None:
        raise subprocess.TimeoutExpired("python", timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    assert doctor._probe("reference") == "did not answer within 120 s"


def test_the_cpu_runs_a_graph() -> None:
    _probes.run_onnxruntime("CPUExecutionProvider")


def test_a_provider_that_is_not_there_is_named() -> None:
    with pytest.raises(RuntimeError, match="this build has no NoProvider"):
        _probes.run_onnxruntime("NoProvider")


class FakeSession:
    """ONNX Runtime's session, as it falls back and as it miscomputes."""

    def __init__(self, model: bytes, providers: list[str]) -> None:
        self.providers = providers

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]

    def run(self, names: None, feeds: dict[str, object]) -> list[float]:
        return [0.0]


def test_a_provider_that_falls_back_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["Other"])
    with pytest.raises(RuntimeError, match="Other could not be started"):
        _probes.run_onnxruntime("Other")


def test_a_provider_that_miscomputes_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    with pytest.raises(RuntimeError, match="CPUExecutionProvider computed a wrong result"):
        _probes.run_onnxruntime("CPUExecutionProvider")


def test_the_reference_imports() -> None:
    _probes.import_reference()


def test_a_reference_without_the_family_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    class Old:
        __version__ = "4.0"

    monkeypatch.setitem(sys.modules, transformers.__name__, Old)
    with pytest.raises(RuntimeError, match=r"transformers 4\.0 with torch .* has no LLaVA"):
        _probes.import_reference()
