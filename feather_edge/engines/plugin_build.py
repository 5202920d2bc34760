"""Compile the TensorRT plugin on the device, against the TensorRT that is installed there.

The plugin is one CUDA source in ``feather_edge/engines/plugin``. It links with nothing of
TensorRT, but its class layouts are those of the headers, so it is compiled where it runs.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from feather_edge.errors import BackendError

__all__ = ["DEFAULT_ARCH", "LIBRARY", "PluginBuild", "build_plugin", "plan_plugin"]

LIBRARY = "libfeather_edge_plugin.so"
LOG = "build-plugin.log"
SOURCE = Path(__file__).parent / "plugin" / "top_k_uniform_gather_plugin.cu"

DEFAULT_ARCH = (87, 110, 121)
"""Compute capabilities of Orin, Thor and Spark, of which nvcc may not know all."""

OLDEST_TENSORRT = (10, 3)
CUDA_ROOTS = ("/usr/local/cuda", "/opt/cuda")
TENSORRT_ROOTS = ("/usr/local/tensorrt", "/opt/tensorrt", "/usr/src/tensorrt")


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginBuild:
    """A compilation that is planned or done.

    Attributes:
        library: what it writes.
        arch: compute capabilities, times ten.
        tensorrt_version: of the headers.
        tensorrt_include: folder of NvInferRuntime.h.
        cuda_version: of nvcc.
        command: what runs, word by word.
        build_s: seconds it took; None when it only is planned.
    """

    library: Path
    arch: tuple[int, ...]
    tensorrt_version: str
    tensorrt_include: Path
    cuda_version: str
    command: tuple[str, ...]
    build_s: float | None = None

    def record(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "library": str(self.library),
            "arch": list(self.arch),
            "tensorrt_version": self.tensorrt_version,
            "tensorrt_include": str(self.tensorrt_include),
            "cuda_version": self.cuda_version,
            "command": list(self.command),
            "build_s": self.build_s,
        }


def plan_plugin(
    output: Path,
    *,
    arch: tuple[int, ...] | None = None,
    tensorrt_include: Path | None = None,
    nvcc: Path | None = None,
) -> PluginBuild:
    """Find compiler and headers, and return what would be run.

    Args:
        output: folder of the library.
        arch: compute capabilities times ten; None for those of `DEFAULT_ARCH` that nvcc knows.
        tensorrt_include: folder of NvInferRuntime.h; None to look in the usual places.
        nvcc: the compiler; None to look in the usual places.

    Raises:
        BackendError: if something is missing, with what installs it, or is too old.
    """
    compiler = _find_nvcc(nvcc)
    headers = _find_headers(tensorrt_include)
    targets = _targets(compiler, arch)
    library = output / LIBRARY
    codes = [f"-gencode=arch=compute_{each},code=sm_{each}" for each in targets]
    # Named as system headers only where the compiler would not look anyway.
    include = [] if headers.is_relative_to("/usr/include") else ["-isystem", str(headers)]
    command = [
        str(compiler), "-std=c++17", "-O3", "-shared", "-Xcompiler=-fPIC,-fvisibility=hidden",
        *codes, *include, str(SOURCE), "-o", str(library),
    ]  # fmt: skip
    return PluginBuild(
        library=library,
        arch=targets,
        tensorrt_version=_tensorrt_version(headers),
        tensorrt_include=headers,
        cuda_version=_cuda_version(compiler),
        command=tuple(command),
    )


def build_plugin(
    output: Path,
    *,
    arch: tuple[int, ...] | None = None,
    tensorrt_include: Path | None = None,
    nvcc: Path | None = None,
) -> PluginBuild:
    """Compile the plugin into ``output``; arguments as of `plan_plugin`.

    Raises:
        BackendError: if something is missing, or the compilation fails.
    """
    plan = plan_plugin(output, arch=arch, tensorrt_include=tensorrt_include, nvcc=nvcc)
    output.mkdir(parents=True, exist_ok=True)
    # A compilation that fails must leave no library behind, nor harm one that is in use.
    unfinished = plan.library.with_suffix(".tmp")
    started = time.perf_counter()
    done = _run(*plan.command[:-1], str(unfinished))
    log = output / LOG
    log.write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode != 0:
        unfinished.unlink(missing_ok=True)
        errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        first = errors[0].strip() if errors else f"status {done.returncode}"
        raise BackendError(f"nvcc could not compile the plugin: {first}; all of it is in {log}")
    unfinished.replace(plan.library)
    return replace(plan, build_s=round(time.perf_counter() - started, 1))


def _find_nvcc(given: Path | None) -> Path:
    if given is not None:
        if not given.is_file():
            raise BackendError(f"nvcc {given} does not exist; --nvcc names the compiler itself")
        return given
    on_path = shutil.which("nvcc")
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), *CUDA_ROOTS]
    places = [Path(on_path)] if on_path else []
    places += [Path(root) / "bin" / "nvcc" for root in roots if root]
    for place in places:
        if place.is_file():
            return place
    raise BackendError(
        "nvcc, which compiles the plugin, is not on PATH nor in "
        f"{', '.join(str(place.parent) for place in places)}; on JetPack: sudo apt install "
        "nvidia-jetpack; elsewhere install the CUDA toolkit; or say where it is with --nvcc"
    )


def _find_headers(given: Path | None) -> Path:
    if given is not None:
        places = [given, given / "include"]
    else:
        root = os.environ.get("TENSORRT_ROOT")
        places = [Path("/usr/include") / f"{platform.machine()}-linux-gnu", Path("/usr/include")]
        places += [Path(each) / "include" for each in (root, *TENSORRT_ROOTS) if each]
    for place in places:
        if (place / "NvInferRuntime.h").is_file():
            return place
    raise BackendError(
        f"NvInferRuntime.h of TensorRT is not in {', '.join(map(str, places))}; on JetPack and "
        "Ubuntu: sudo apt install libnvinfer-headers-dev (pip's tensorrt brings no headers); or "
        "say where it is with --tensorrt-include"
    )


def _tensorrt_version(headers: Path) -> str:
    """Read major.minor.patch from NvInferVersion.h, where one macro may name another."""
    header = headers / "NvInferVersion.h"
    text = header.read_text(encoding="utf-8", errors="replace") if header.is_file() else ""
    macros = dict(re.findall(r"^#define\s+(\w+)\s+(\w+)", text, re.MULTILINE))
    parts = [macros.get(f"NV_TENSORRT_{each}", "") for each in ("MAJOR", "MINOR", "PATCH")]
    parts = [macros.get(part, part) for part in parts]
    if not all(part.isdigit() for part in parts):
        raise BackendError(f"{header} does not say which TensorRT it is; is it a TensorRT header?")
    version = ".".join(parts)
    if (int(parts[0]), int(parts[1])) < OLDEST_TENSORRT:
        raise BackendError(
            f"TensorRT in {headers} is {version}; the plugin needs 10.3 or later, which JetPack "
            "6.1 and later have"
        )
    return version


def _targets(nvcc: Path, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return what to compile for: what is wanted, if nvcc knows it all."""
    listed = _ask(nvcc, "--list-gpu-arch")
    known = tuple(int(number) for number in re.findall(r"compute_(\d+)", listed))
    targets = wanted or tuple(each for each in DEFAULT_ARCH if each in known) or DEFAULT_ARCH
    unknown = ", ".join(f"sm_{each}" for each in targets if each not in known)
    if unknown:
        raise BackendError(
            f"{nvcc} cannot compile for {unknown}; it knows {', '.join(map(str, known))}: choose "
            "among these with --arch"
        )
    return targets


def _cuda_version(nvcc: Path) -> str:
    found = re.search(r"release ([\d.]+)", _ask(nvcc, "--version"))
    return found.group(1) if found else "unknown"


def _ask(nvcc: Path, option: str) -> str:
    done = _run(str(nvcc), option)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["it says nothing"]
        raise BackendError(f"{nvcc} {option} failed: {last[0]}; is it a CUDA compiler?")
    return done.stdout


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603 - the compiler that was found or named
            command, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise BackendError(f"{command[0]} cannot be run: {error.strerror}") from error
