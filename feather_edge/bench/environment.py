"""The conditions of a measurement: a number without them is not a result."""

from __future__ import annotations

import hashlib
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from feather_edge import __version__
from feather_edge.engine_record import engine_folder, engine_targets
from feather_edge.manifest import MANIFEST_FILE
from feather_edge.platform_facts import (
    PlatformFacts,
    file_text,
    package_version,
    processor_name,
    read_platform,
)
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime.backend_names import ENGINE_BACKENDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feather_edge.bundle import Bundle
    from feather_edge.runtime.backends import Backend

__all__ = ["Environment", "describe_environment"]

RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx")


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """Machine, software and bundle.

    Attributes:
        measured_at: when the measurement began, UTC.
        machine: board or processor.
        num_cores: that this process may use.
        num_threads: asked for; None is the backend's own choice.
        cpu_governor: of the first core; None where the system does not say.
        facts: what the machine says of JetPack, CUDA, TensorRT, power mode, clocks and memory.
        load_average: of the last minute before the measurement; near zero on a quiet machine.
        energy_sensors: what energy is summed over; empty without a sensor.
        runtimes: installed versions of what can run graphs.
        engines_sha256: of the records of the engines that ran; None where graphs ran.
        manifest_sha256: of the bundle's manifest, which has the hash of every file.
        recipe_sha256: of ``recipe``, as JSON.
    """

    measured_at: str
    machine: str
    platform: str
    python: str
    numpy: str
    feather_edge: str
    num_cores: int
    num_threads: int | None
    cpu_governor: str | None
    facts: PlatformFacts
    load_average: float
    energy_sensors: tuple[str, ...]
    runtimes: dict[str, str]
    backend: str
    device: str
    target: str | None
    engines_sha256: str | None
    bundle: str
    source: str
    model_type: str
    manifest_sha256: str
    recipe: ExportRecipe
    recipe_sha256: str


def describe_environment(
    bundle: Bundle,
    backend: Backend,
    *,
    target: str | None,
    num_threads: int | None,
    energy_sensors: Sequence[str],
    root: Path = Path("/"),
) -> Environment:
    """Return the conditions under which ``bundle`` runs on ``backend`` here and now.

    Args:
        bundle: an opened bundle.
        backend: an opened backend.
        target: whose engines run.
        num_threads: asked for.
        energy_sensors: names of the meters.
        root: of the file system, another one in tests.
    """
    facts = read_platform(root)
    recipe = bundle.manifest.recipe
    if target is None and backend.name in ENGINE_BACKENDS:
        (target,) = engine_targets(bundle.path)  # the backend has refused several
    return Environment(
        measured_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        machine=facts.board or processor_name(root),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        numpy=np.__version__,
        feather_edge=__version__,
        num_cores=len(os.sched_getaffinity(0)),
        num_threads=num_threads,
        cpu_governor=file_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        facts=facts,
        load_average=os.getloadavg()[0],
        energy_sensors=tuple(energy_sensors),
        runtimes={name: version for name in RUNTIMES if (version := package_version(name))},
        backend=backend.name,
        device=backend.device,
        target=target,
        engines_sha256=None if target is None else _records_sha256(bundle, target),
        bundle=str(bundle.path),
        source=bundle.manifest.source,
        model_type=bundle.manifest.model_type,
        manifest_sha256=_sha256((bundle.path / MANIFEST_FILE).read_bytes()),
        recipe=recipe,
        recipe_sha256=_sha256(msgspec.json.encode(recipe)),
    )


def _records_sha256(bundle: Bundle, target: str) -> str:
    records = sorted(engine_folder(bundle.path, target).glob("*.json"))
    return _sha256(b"".join(file.read_bytes() for file in records))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
