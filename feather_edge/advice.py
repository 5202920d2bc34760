"""What a platform's facts mean for feather-edge: what does not go together, and what to type."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from feather_edge.platform_facts import PlatformFacts

__all__ = ["platform_notes", "tensorrt_mismatch", "tensorrt_remedy"]

OLDEST_TENSORRT = (10, 3)
SMALL_MEMORY_MIB = 16 * 1024
FULL_POWER = "MAXN"


def tensorrt_remedy(facts: PlatformFacts) -> str:
    """Return how to get the Python package ``tensorrt`` on this machine."""
    if facts.tensorrt is None:
        return "pip install 'feather-edge[tensorrt]'"
    if _numbers(facts.tensorrt) < OLDEST_TENSORRT:
        return _too_old(facts)
    if facts.python_tensorrt is None:
        return (
            f"the system has TensorRT {facts.tensorrt} without its Python package: "
            f"sudo apt install python3-libnvinfer"
        )
    return (
        f"the system has TensorRT {facts.python_tensorrt}, which this virtual environment does "
        f"not see: python3 -m venv --system-site-packages"
    )


def tensorrt_mismatch(facts: PlatformFacts, installed: str | None) -> str | None:
    """Return what is wrong with an importable ``tensorrt`` of version ``installed``, or None.

    On a Jetson only the TensorRT that its JetPack brings fits the driver.
    """
    if installed is None:
        return None
    if facts.l4t and facts.tensorrt and _numbers(facts.tensorrt) != _numbers(installed):
        return (
            f"Python has TensorRT {installed}, JetPack {facts.jetpack} has {facts.tensorrt}: "
            f"pip uninstall tensorrt, then python3 -m venv --system-site-packages"
        )
    if _numbers(installed) < OLDEST_TENSORRT:
        return _too_old(facts)
    return None


def platform_notes(facts: PlatformFacts) -> Iterator[str]:
    """Yield what will surprise on this machine, each with the command that changes it."""
    if facts.jetpack and facts.jetpack.partition(".")[0] == "5":
        yield (
            f"JetPack {facts.jetpack} has TensorRT {facts.tensorrt or '8'} and Python 3.8, which "
            f"are too old; upgrade the board to JetPack 6 with NVIDIA's SDK Manager"
        )
    if facts.l4t and facts.power_mode and not facts.power_mode.startswith(FULL_POWER):
        yield (
            f"the power mode is {facts.power_mode}; times are best and steadiest with "
            f"sudo nvpmodel -m with the number of {FULL_POWER} in /etc/nvpmodel.conf, and "
            f"sudo jetson_clocks"
        )
    if facts.l4t and facts.swap_mib == 0 and (facts.memory_mib or 0) < SMALL_MEMORY_MIB:
        yield (
            f"{facts.memory_mib} MiB of memory and no swap: building an engine may be killed; "
            f"sudo fallocate -l 8G /swapfile && sudo chmod 600 /swapfile && "
            f"sudo mkswap /swapfile && sudo swapon /swapfile"
        )


def _too_old(facts: PlatformFacts) -> str:
    oldest = ".".join(map(str, OLDEST_TENSORRT))
    return f"TensorRT {facts.tensorrt or 'here'} is older than {oldest}; " + (
        "upgrade JetPack" if facts.l4t else "pip install -U 'feather-edge[tensorrt]'"
    )


def _numbers(version: str) -> tuple[int, ...]:
    """Return major and minor, which is what must agree."""
    return tuple(int(part) for part in version.split(".")[:2])
