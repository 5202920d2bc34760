"""Under which conditions rounds are measured: machine, its instructions, packages, command."""

from __future__ import annotations

import os
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compare_peers import environments
from feather_edge.platform_facts import processor_name, read_platform

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from compare_peers.contenders import Environment

ROOT = Path(__file__).parents[2]
CPU_FEATURES = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
"""Instructions that decide how fast products of 8 and 16 bits are, on x86 and on Arm."""


def conditions(
    made: Iterable[Environment], root: Path, *, num_threads: int, arguments: Sequence[str]
) -> dict[str, Any]:
    """Return what rounds are measured under, as they start.

    Args:
        made: environments of the contenders.
        root: the folder that they are in.
        num_threads: of each contender.
        arguments: the program and its arguments, as ``sys.argv`` has them.
    """
    facts = read_platform()
    return {
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": facts.board or processor_name(),
        "cpu_features": cpu_features(Path("/proc/cpuinfo").read_text(encoding="utf-8")),
        "num_cores": len(os.sched_getaffinity(0)),
        "num_threads": num_threads,
        "memory_mib": facts.memory_mib,
        "load_average": os.getloadavg()[0],
        "command": command(arguments),
        "packages": {each.name: environments.versions(root / each.name) for each in made},
    }


def cpu_features(cpuinfo: str) -> list[str]:
    """Return those of ``CPU_FEATURES`` that every core in a ``/proc/cpuinfo`` has."""
    lines = [line.partition(":") for line in cpuinfo.splitlines()]
    cores = [set(words.split()) for key, _, words in lines if key.strip() in ("flags", "Features")]
    return [name for name in CPU_FEATURES if cores and all(name in core for core in cores)]


def command(arguments: Sequence[str]) -> list[str]:
    """Return the command as it was given; of folders elsewhere, only their names."""
    words = [Path(sys.executable).name]
    for word in arguments:
        path = Path(word)
        if path.is_absolute() or path.exists():
            absolute = path.resolve()
            inside = absolute.is_relative_to(ROOT)
            words.append(str(absolute.relative_to(ROOT)) if inside else absolute.name)
        else:
            words.append(word)
    return words
