"""What a machine says of itself in files: board, JetPack, CUDA, TensorRT, driver, memory, clocks.

Nothing is run and nothing is guessed: what no file says is None. Every path is below ``root``, so
that what a Jetson has can be read from a copy of a few of its files.
"""

from __future__ import annotations

import json
import platform
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

__all__ = [
    "PlatformFacts", "file_text", "installed", "package_version", "processor_name",
    "read_platform",
]  # fmt: skip

JETPACK_OF_L4T = {"35": "5", "36": "6", "38": "7"}
"""Major releases; only the package nvidia-jetpack tells the minor one."""

COMPUTE_CAPABILITIES = {"Orin": "8.7", "Thor": "11.0", "Xavier": "7.2"}
"""Of the boards, by a word in their name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformFacts:
    """What is known; None where no file says.

    Attributes:
        board: name of the board.
        l4t: release of NVIDIA's Linux for Tegra, as ``36.4.3``.
        jetpack: its JetPack; a number without a dot was inferred from the release.
        cuda: version of the toolkit.
        tensorrt: version of the system's TensorRT libraries.
        python_tensorrt: version of the system's Python binding of it.
        driver: version of the GPU's driver.
        compute_capability: of the board's GPU.
        power_mode: name of the power mode, on a Jetson.
        gpu_clock_mhz: of the GPU now and at most, on a Jetson.
        memory_mib: of the machine; on a Jetson CPU and GPU share it.
        free_memory_mib: what a new program could have.
        swap_mib: of all swap.
    """

    board: str | None
    l4t: str | None
    jetpack: str | None
    cuda: str | None
    tensorrt: str | None
    python_tensorrt: str | None
    driver: str | None
    compute_capability: str | None
    power_mode: str | None
    gpu_clock_mhz: tuple[int, int] | None
    memory_mib: int | None
    free_memory_mib: int | None
    swap_mib: int | None


def read_platform(root: Path = Path("/")) -> PlatformFacts:
    """Return what the files below ``root`` say."""
    packages = _debian_packages(root / "var/lib/dpkg/status")
    board = file_text(root / "proc/device-tree/model")
    l4t = _l4t(file_text(root / "etc/nv_tegra_release"))
    memory = _memory(file_text(root / "proc/meminfo"))
    return PlatformFacts(
        board=board,
        l4t=l4t,
        jetpack=_version(packages.get("nvidia-jetpack")) or _jetpack_of(l4t),
        cuda=_cuda(root / "usr/local/cuda/version.json"),
        tensorrt=_version(packages.get("libnvinfer10") or packages.get("libnvinfer8")),
        python_tensorrt=_version(packages.get("python3-libnvinfer")),
        driver=_driver(file_text(root / "proc/driver/nvidia/version")),
        compute_capability=next(
            (value for word, value in COMPUTE_CAPABILITIES.items() if word in (board or "")), None
        ),
        power_mode=_power_mode(root),
        gpu_clock_mhz=_gpu_clock(root / "sys/class/devfreq"),
        memory_mib=memory.get("MemTotal"),
        free_memory_mib=memory.get("MemAvailable"),
        swap_mib=memory.get("SwapTotal"),
    )


def file_text(path: Path) -> str | None:
    """Return the text of a small file of the system, None where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def processor_name(root: Path = Path("/")) -> str:
    """Return the processor's model, or the machine type where nothing says more."""
    name = _found(r"(?m)^model name\s*:\s*(.+)$", file_text(root / "proc/cpuinfo"))
    return name or platform.machine()


def package_version(package: str) -> str | None:
    """Return the version of an installed Python package, None when it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def installed(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those of some Python packages that are installed."""
    versions = {name: package_version(name) for name in packages}
    return {name: version for name, version in versions.items() if version is not None}


def _found(pattern: str, text: str | None) -> str | None:
    match = re.search(pattern, text or "")
    return match.group(1) if match else None


def _l4t(release: str | None) -> str | None:
    """Read ``# R36 (release), REVISION: 4.3, ...``."""
    major, minor = _found(r"# R(\d+)", release), _found(r"REVISION: ([\d.]+)", release)
    return f"{major}.{minor}" if major and minor else None


def _jetpack_of(l4t: str | None) -> str | None:
    return JETPACK_OF_L4T.get(l4t.partition(".")[0]) if l4t else None


def _debian_packages(status: Path) -> dict[str, str]:
    """Return version by name of the packages that are installed."""
    text = file_text(status)
    found = {}
    for paragraph in (text or "").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line[:40])
        if fields.get("Status", "").endswith(" installed"):
            found[fields.get("Package", "")] = fields.get("Version", "")
    return found


def _version(package: str | None) -> str | None:
    """Return the version of ``10.3.0.30-1+cuda12.5`` or ``6.2+b77`` as its maker counts."""
    return _found(r"^(?:\d+:)?([\d.]+)", package)


def _cuda(file: Path) -> str | None:
    try:
        version = json.loads(file_text(file) or "")["cuda"]["version"]
    except (ValueError, KeyError, TypeError):
        return None
    return version if isinstance(version, str) else None


def _driver(version: str | None) -> str | None:
    """Read the first version number of NVIDIA's ``NVRM version`` line."""
    return _found(r"NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)\s", version)


def _power_mode(root: Path) -> str | None:
    """Return the name that nvpmodel's configuration gives to the mode it is in."""
    number = _found(r"pmode:(\d+)", file_text(root / "var/lib/nvpmodel/status"))
    if number is None:
        return None
    configuration = file_text(root / "etc/nvpmodel.conf")
    name = _found(rf"POWER_MODEL ID={int(number)} NAME=(\S+)", configuration)
    return name or f"mode {int(number)}"


def _gpu_clock(devices: Path) -> tuple[int, int] | None:
    for device in sorted(devices.glob("*")):
        if not re.search(r"gpu|ga10b|gv11b|gb10b", device.name):
            continue
        now, most = (file_text(device / name) for name in ("cur_freq", "max_freq"))
        if now and most and now.isdigit() and most.isdigit():
            return int(now) // 10**6, int(most) // 10**6
    return None


def _memory(meminfo: str | None) -> dict[str, int]:
    """Return MiB by name of the lines of /proc/meminfo."""
    lines = re.findall(r"^(\w+):\s+(\d+) kB$", meminfo or "", flags=re.MULTILINE)
    return {name: int(kibibytes) // 1024 for name, kibibytes in lines}
