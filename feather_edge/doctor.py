"""What works on this machine, and what to install for the rest.

Nothing is called working because it is installed: a backend works when it ran a graph.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from feather_edge import __version__
from feather_edge.advice import platform_notes, tensorrt_mismatch, tensorrt_remedy
from feather_edge.bundle import Bundle
from feather_edge.engine_record import engine_targets, read_record
from feather_edge.engines._device import current_device
from feather_edge.errors import BackendError
from feather_edge.platform_facts import PlatformFacts, package_version, read_platform
from feather_edge.runtime.backend_names import OPENVINO_BF16
from feather_edge.runtime.receipt import Verification, verification

__all__ = ["Examined", "Loading", "Report", "examine"]

State = Literal["works", "missing", "mismatched", "fails"]

PACKAGES = (
    "numpy", "onnx", "onnx-ir", "safetensors", "tokenizers", "pillow", "huggingface-hub",
    "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx",
    "torch", "transformers",
)  # fmt: skip
PROBE_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """One backend, or the reference that parity checks compare with.

    Attributes:
        name: as ``--backend`` spells it, or ``reference``.
        device: where its graphs run.
        state: ``works`` only after it ran a graph here.
        remedy: what to do about it, None when it works.
    """

    name: str
    device: str
    state: State
    remedy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """Whether a bundle loads here.

    Attributes:
        backend: that would run it.
        target: whose engines, None for the graphs themselves.
        failure: what differs and the command that rebuilds; None where everything loaded.
        verification: whether ``feather-edge verify`` compared what loaded; None where nothing did.
    """

    backend: str
    target: str | None
    failure: str | None
    verification: Verification | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `examine` found.

    Attributes:
        version: of feather-edge.
        python: version of the interpreter.
        platform: system, machine, C library and cores.
        gpu: name and compute capability of the first GPU, as its driver says them.
        facts: what the machine's files say.
        packages: version by name, None when not installed.
        backends: what each of them does here.
        bundle: whether the bundle that was given loads here; empty without one.
        notes: what will surprise.
    """

    version: str
    python: str
    platform: str
    gpu: str | None
    facts: PlatformFacts
    packages: dict[str, str | None]
    backends: tuple[Examined, ...]
    bundle: tuple[Loading, ...]
    notes: tuple[str, ...]


def examine(bundle: Path | None = None, *, root: Path = Path("/")) -> Report:
    """Look at this machine: its platform, packages, and which backends run a graph.

    Takes a few seconds; every trial runs in a process of its own.

    Args:
        bundle: a bundle to load with every backend that it has something for.
        root: where the machine's files are.
    """
    facts = read_platform(root)
    packages = {name: package_version(name) for name in PACKAGES}
    device = current_device()
    return Report(
        version=__version__,
        python=platform.python_version(),
        platform=_platform(),
        gpu=None if device is None else f"{device.name}, sm {device.compute_capability}",
        facts=facts,
        packages=packages,
        backends=(
            _onnxruntime(packages, device="cpu", extra="ort"),
            _onnxruntime(packages, device="cuda", extra="gpu"),
            *_openvino(packages),
            _tensorrt(facts, packages),
            _tensorrt_rtx(),
            Examined(name="fake", device="none", state="works"),
            _reference(packages),
        ),
        bundle=() if bundle is None else _loadings(bundle),
        notes=(*platform_notes(facts), *_notes(packages)),
    )


def _onnxruntime(packages: dict[str, str | None], *, device: str, extra: str) -> Examined:
    """Examine ONNX Runtime on one device; the GPU build brings the CPU along."""
    install = f"pip install 'feather-edge[{extra}]'"
    builds = ("onnxruntime", "onnxruntime-gpu") if device == "cpu" else ("onnxruntime-gpu",)
    if not any(packages[build] for build in builds):
        return Examined(name="onnxruntime", device=device, state="missing", remedy=install)
    failure = _probe(f"onnxruntime-{device}")
    if failure is None:
        return Examined(name="onnxruntime", device=device, state="works")
    return Examined(name="onnxruntime", device=device, state="fails", remedy=failure)


def _tensorrt(facts: PlatformFacts, packages: dict[str, str | None]) -> Examined:
    """Examine TensorRT: a trial builds an engine and runs it."""
    found = {"name": "tensorrt", "device": "cuda"}
    if importlib.util.find_spec("tensorrt") is None:
        return Examined(**found, state="missing", remedy=tensorrt_remedy(facts))
    installed = packages["tensorrt"] or facts.python_tensorrt
    if mismatch := tensorrt_mismatch(facts, installed):
        return Examined(**found, state="mismatched", remedy=mismatch)
    return _tried(**found)


def _tensorrt_rtx() -> Examined:
    """Examine TensorRT-RTX, likewise."""
    found = {"name": "tensorrt-rtx", "device": "cuda"}
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return Examined(**found, state="missing", remedy="pip install 'feather-edge[rtx]'")
    return _tried(**found)


def _tried(*, name: str, device: str) -> Examined:
    failure = _probe(name)
    if failure is None:
        return Examined(name=name, device=device, state="works")
    return Examined(name=name, device=device, state="fails", remedy=failure)


def _loadings(bundle: Path) -> tuple[Loading, ...]:
    """Load a bundle with ONNX Runtime, and the engines of every target it has."""
    loadings = [_loading(bundle, "onnxruntime", None, _probe("bundle", str(bundle)))]
    for target in engine_targets(bundle):
        try:
            backend = read_record(bundle, target, "vision_encoder").backend
            failure = _probe("engines", str(bundle), backend, target)
        except BackendError as error:
            backend, failure = "tensorrt", str(error)
        loadings.append(_loading(bundle, backend, target, failure))
    return tuple(loadings)


def _loading(bundle: Path, backend: str, target: str | None, failure: str | None) -> Loading:
    if failure is not None:
        return Loading(backend=backend, target=target, failure=failure)
    found = verification(Bundle.open(bundle), backend=backend, target=target)
    return Loading(backend=backend, target=target, failure=None, verification=found)


def _openvino(packages: dict[str, str | None]) -> tuple[Examined, ...]:
    """Examine OpenVINO, and where it runs, whether it does so in bfloat16."""
    found = {"name": "openvino", "device": "cpu"}
    if not packages["openvino"]:
        install = "pip install 'feather-edge[openvino]'"
        return (Examined(**found, state="missing", remedy=install),)
    tried = _tried(**found)
    if tried.state != "works":
        return (tried,)
    lacking = _probe(OPENVINO_BF16)
    state: State = "works" if lacking is None else "missing"
    return tried, Examined(name=OPENVINO_BF16, device="cpu", state=state, remedy=lacking)


def _reference(packages: dict[str, str | None]) -> Examined:
    """Examine torch and transformers, which verification needs and nothing else does."""
    found = {"name": "reference", "device": "cpu"}
    if not (packages["torch"] and packages["transformers"]):
        install = "only for verification: pip install 'feather-edge[torch]'"
        return Examined(**found, state="missing", remedy=install)
    return _tried(**found)


def _probe(name: str, *arguments: str) -> str | None:
    """Run a trial in its own process; return None, or why it failed."""
    try:
        done = subprocess.run(  # noqa: S603 - our own module, by its name
            [sys.executable, "-m", "feather_edge._probes", name, *arguments],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"did not answer within {PROBE_TIMEOUT_S} s"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"ended with status {done.returncode}"


def _platform() -> str:
    """Return system, machine, C library and cores."""
    libc = " ".join(platform.libc_ver()).strip() or "unknown C library"
    return ", ".join([platform.system(), platform.machine(), libc, f"{os.cpu_count()} cores"])


def _notes(packages: dict[str, str | None]) -> tuple[str, ...]:
    """Return what is installed but will surprise."""
    if packages["onnxruntime"] and packages["onnxruntime-gpu"]:
        both = (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's "
            "files: pip uninstall -y onnxruntime onnxruntime-gpu, then install one of them"
        )
        return (both,)
    return ()
