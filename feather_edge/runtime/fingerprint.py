"""What a measured time depends on: bundle, backend, machine and software."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from feather_edge import __version__
from feather_edge.engine_record import engine_targets, records_sha256
from feather_edge.platform_facts import file_text, installed, processor_name
from feather_edge.runtime.backend_names import ENGINE_BACKENDS, OPENVINO_BF16

if TYPE_CHECKING:
    from feather_edge.bundle import Bundle
    from feather_edge.runtime.backends import Backend

PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    OPENVINO_BF16: ("openvino",),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx",),
}
"""Distributions that may hold a backend's library."""


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What must be the same for a measured time to hold.

    Attributes:
        bundle: the manifest's own SHA-256; it has the recipe and the hash of every file.
        engines: SHA-256 of the records of the bundle's engines; None where graphs run.
        feather_edge: version.
        backend: name.
        device: where tensors lie.
        library: distribution and version of what runs the graphs; None where none is installed.
        machine: board or processor.
        power_mode: of a Jetson, as ``nvpmodel`` has it; None elsewhere.
        num_cores: that the process may use.
        num_threads: asked for; None is the backend's own choice.
    """

    bundle: str
    engines: str | None
    feather_edge: str
    backend: str
    device: str
    library: str | None
    machine: str
    power_mode: str | None
    num_cores: int
    num_threads: int | None

    @property
    def file(self) -> str:
        """Path within a bundle of what is measured with this backend and device."""
        return f"calibration/{self.backend}-{self.device.replace(':', '-')}.json"

    def difference(self, other: Fingerprint) -> str | None:
        """See the function ``difference``."""
        return difference(self, other)


def fingerprint(bundle: Bundle, backend: Backend) -> Fingerprint:
    """Return what times measured here and now depend on."""
    return Fingerprint(
        bundle=bundle.manifest.sha256,
        engines=records_sha256(bundle.path, *engine_targets(bundle.path))
        if backend.name in ENGINE_BACKENDS
        else None,
        feather_edge=__version__,
        backend=backend.name,
        device=backend.device,
        library=library(backend.name),
        machine=machine_name(),
        power_mode=file_text(Path("/var/lib/nvpmodel/status")),
        num_cores=len(os.sched_getaffinity(0)),
        num_threads=backend.num_threads,
    )


def machine_name(root: Path = Path("/")) -> str:
    """Return the board's own name, or the processor's."""
    board = file_text(root / "proc/device-tree/model")
    if board is not None:
        return board
    return processor_name(root)


def difference(was: msgspec.Struct, now: msgspec.Struct) -> str | None:
    """Return the first field in which two of a kind differ, in words; None if none does."""
    for name in was.__struct_fields__:
        before, after = getattr(was, name), getattr(now, name)
        if before != after:
            label = name.replace("_", "-")
            return f"{label} {_short(before)}, and here it is {_short(after)}"
    return None


def library(backend: str) -> str | None:
    """Return distribution and version of what runs a backend's graphs; None without one."""
    found = installed(PACKAGES.get(backend, ()))
    return next((f"{name} {version}" for name, version in found.items()), None)


def _short(value: object) -> str:
    text = str(value)
    is_hash = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return text[:12] if is_hash else text
