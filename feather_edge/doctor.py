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
from importlib import metadata
from pathlib import Path
from typing import Literal

from feather_edge import __version__

__all__ = ["Examined", "Report", "examine"]

State = Literal["works", "missing", "fails", "not supported by this version"]

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
class Report:
    """What `examine` found. `packages` maps a name to its version, None when not installed."""

    version: str
    python: str
    platform: str
    packages: dict[str, str | None]
    backends: tuple[Examined, ...]
    notes: tuple[str, ...]


def examine() -> Report:
    """Look at this machine: packages, and which backends run a graph.

    Takes a few seconds; every trial runs in a process of its own.
    """
    packages = {name: _version(name) for name in PACKAGES}
    return Report(
        version=__version__,
        python=platform.python_version(),
        platform=_platform(),
        packages=packages,
        backends=(
            _onnxruntime(packages, device="cpu", extra="ort"),
            _onnxruntime(packages, device="cuda", extra="gpu"),
            _unsupported("openvino", device="cpu, gpu"),
            _tensorrt("tensorrt", "tensorrt", extra="tensorrt"),
            _tensorrt("tensorrt-rtx", "tensorrt_rtx", extra="rtx"),
            Examined(name="fake", device="none", state="works"),
            _reference(packages),
        ),
        notes=_notes(packages),
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


def _tensorrt(name: str, module: str, *, extra: str) -> Examined:
    """Examine TensorRT or TensorRT-RTX: a trial builds an engine and runs it."""
    if importlib.util.find_spec(module) is None:
        remedy = f"pip install 'feather-edge[{extra}]'"
        if name == "tensorrt":
            remedy += "; on a Jetson JetPack has it: python3 -m venv --system-site-packages"
        return Examined(name=name, device="cuda", state="missing", remedy=remedy)
    failure = _probe(name)
    if failure is None:
        return Examined(name=name, device="cuda", state="works")
    return Examined(name=name, device="cuda", state="fails", remedy=failure)


def _unsupported(name: str, *, device: str) -> Examined:
    """State that installing something would not help: there is no adapter."""
    return Examined(name=name, device=device, state="not supported by this version")


def _reference(packages: dict[str, str | None]) -> Examined:
    """Examine torch and transformers, which verification needs and nothing else does."""
    found = {"name": "reference", "device": "cpu"}
    if not (packages["torch"] and packages["transformers"]):
        install = "only for verification: pip install 'feather-edge[torch]'"
        return Examined(**found, state="missing", remedy=install)
    failure = _probe("reference")
    if failure is None:
        return Examined(**found, state="works")
    return Examined(**found, state="fails", remedy=failure)


def _probe(name: str) -> str | None:
    """Run a trial in its own process; return None, or why it failed."""
    try:
        done = subprocess.run(  # noqa: S603 - our own module, by its name
            [sys.executable, "-m", "feather_edge._probes", name],
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


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _platform() -> str:
    """Return system, machine, C library, cores, and the board's own name where it has one."""
    libc = " ".join(platform.libc_ver()).strip() or "unknown C library"
    parts = [platform.system(), platform.machine(), libc, f"{os.cpu_count()} cores"]
    board = Path("/proc/device-tree/model")
    if board.is_file():
        parts.append(board.read_text(encoding="utf-8", errors="replace").strip("\0\n"))
    return ", ".join(parts)


def _notes(packages: dict[str, str | None]) -> tuple[str, ...]:
    """Return what is installed but will surprise."""
    if packages["onnxruntime"] and packages["onnxruntime-gpu"]:
        both = (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's "
            "files: pip uninstall -y onnxruntime onnxruntime-gpu, then install one of them"
        )
        return (both,)
    return ()
