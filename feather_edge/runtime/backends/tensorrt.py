"""TensorRT and TensorRT-RTX: engines of a bundle, run on the GPU that they were built for.

Tensors stay on the device from segment to segment; only what is downloaded waits for it. How one
engine is driven: ``_engine_graph``; who owns memory, and why caches need two of it:
``_device_memory``; the driver: ``_cuda``.

Decode steps are captured as CUDA graphs where caches are in place; with caches that grow by
``Concat`` shapes differ from step to step. Nothing is captured with TensorRT-RTX: it changes
kernels while it runs, and what was captured would stay with the old ones.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feather_edge.engine_record import (
    check_fit,
    engine_file,
    engine_folder,
    engine_targets,
    read_record,
    rebuild_command,
)
from feather_edge.errors import BackendError
from feather_edge.runtime.backends._cuda import Driver
from feather_edge.runtime.backends._device_memory import DeviceMemory, DeviceTensor
from feather_edge.runtime.backends._engine_graph import EngineGraph, Machine, Scratch
from feather_edge.runtime.backends._tensorrt_library import TensorRTLibrary
from feather_edge.runtime.backends.base import Backend, Graph, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from feather_edge.bundle import Bundle
    from feather_edge.engine_record import EngineRecord
    from feather_edge.graphs import DType, GraphSpec

PLUGIN_FOLDER = Path("engines/out")


class TensorRTBackend(Backend):
    """Runs the engines of one target of a bundle.

    Args:
        bundle: whose engines.
        target: as ``build-engine --target`` had it; None takes the only one there is.
        name: ``tensorrt`` or ``tensorrt-rtx``.
        cuda_graphs: whether decode steps may be captured.

    Raises:
        BackendError: if TensorRT or a GPU is missing, or the target is.
    """

    device = "cuda"

    def __init__(
        self,
        bundle: Bundle,
        *,
        target: str | None = None,
        name: str,
        cuda_graphs: bool = True,
    ) -> None:
        if not cuda_graphs and name == "tensorrt-rtx":
            raise BackendError(f"nothing is captured with {name} anyway; leave the option out")
        self.name = name
        self._bundle = bundle
        self._target = self.target = _choose_target(bundle, target)
        self._cuda_graphs = cuda_graphs
        self._library = TensorRTLibrary(name)
        self._driver = Driver()
        self._free_at_start, _ = self._driver.memory_info()
        self._memory = DeviceMemory(self._driver)
        self._machine = Machine(
            library=self._library,
            memory=self._memory,
            scratch=Scratch(self._memory),
            no_capture=_no_capture(name, is_wanted=cuda_graphs),
        )
        self._plugins: set[str] = set()

    def open(self, file: Path, spec: GraphSpec) -> Graph:  # noqa: ARG002 - the engine is opened
        """Open the engine of a graph, after its record was compared with this machine."""
        bundle, target = self._bundle, self._target
        record = read_record(bundle.path, target, spec.name)
        folder = engine_folder(bundle.path, target)
        check_fit(
            record,
            bundle,
            spec,
            backend=self.name,
            tensorrt_version=self._library.version,
            device_name=self._driver.device_name,
            compute_capability=self._driver.compute_capability,
            plugin_sha256=self._load_plugin(folder, record),
        )
        (form,) = (form for form in spec.forms if form.opset == record.opset)
        spec = spec.of(form)
        engine = self._library.load_engine(engine_file(folder, spec.name))
        remedy = f"rebuild it with: {rebuild_command(bundle.path, target)} -f"
        _check_contract(self._library.tensors(engine), spec, remedy)
        if spec.caches and not spec.caches_in_place and not self._cuda_graphs:
            raise BackendError(
                f"the engine of {spec.name} has caches that grow, so none of its steps is "
                f"captured anyway; leave the option out"
            )
        for present, past in spec.caches_in_place.items():
            if (found := self._library.aliased_input(engine, present)) != past:
                raise BackendError(
                    f"the engine of {spec.name} writes {present} over {found or 'no input'}, not "
                    f"over {past}; {remedy}"
                )
        if engine.num_optimization_profiles != len(record.profiles):
            raise BackendError(
                f"the engine of {spec.name} has {engine.num_optimization_profiles} profiles, its "
                f"record {len(record.profiles)}; {remedy}"
            )
        return EngineGraph(self._machine, engine, spec, record)

    def upload(self, array: NDArray[np.generic]) -> Tensor:
        """See ``Backend.upload``."""
        return DeviceTensor.of_array(self._memory, array)

    def download(self, tensor: Tensor) -> NDArray[Any]:
        """See ``Backend.download``."""
        array: NDArray[Any] = tensor.values()
        return array

    def zeros(self, shape: tuple[int, ...], dtype: DType) -> Tensor:
        """See ``Backend.zeros``; nothing is copied from the host."""
        return self._memory.zeros(shape, np.dtype(dtype))

    @property
    def continues_prompts(self) -> bool:
        """See ``Backend.continues_prompts``: profiles of prompts may want an empty cache."""
        return all(self._takes_filled_caches(spec) for spec in self._bundle.decoders)

    def _takes_filled_caches(self, spec: GraphSpec) -> bool:
        profile = read_record(self._bundle.path, self._target, spec.name).profiles[0]
        return all(profile.inputs[past].max[2] > 0 for past in spec.caches.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """See ``Backend.notes``."""
        return tuple(self._machine.notes)

    def take_rows(self, tensor: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """See ``Backend.take_rows``; the rows are copied on the device."""
        return tensor.take_rows(rows)

    def device_bytes(self) -> int:
        """See ``Backend.device_bytes``: what the device has less than when this was created.

        The weights of engines are in it, which TensorRT allocates by itself; so is whatever other
        programs have taken or given back meanwhile.
        """
        free, _ = self._driver.memory_info()
        return self._free_at_start - free

    def _load_plugin(self, folder: Path, record: EngineRecord) -> str | None:
        """Load the plugin that an engine was built with; returns its hash.

        It lies beside the engines, or where ``build-plugin`` writes it.
        """
        if record.plugin is None:
            return None
        places = [folder / record.plugin, PLUGIN_FOLDER / record.plugin]
        found = {_sha256(place): place for place in reversed(places) if place.is_file()}
        if not found:
            raise BackendError(
                f"the engine of {record.graph} needs the plugin {record.plugin}, which is neither "
                f"in {folder} nor in {PLUGIN_FOLDER}; copy it there, or rebuild with: "
                f"{rebuild_command(self._bundle.path, self._target)}"
            )
        digest = str(record.plugin_sha256)
        if digest not in found:
            return next(iter(found))  # the comparison with the record refuses it
        if digest not in self._plugins:
            self._library.load_plugin(found[digest])
            self._plugins.add(digest)
        return digest


def _no_capture(name: str, *, is_wanted: bool) -> str | None:
    if not is_wanted:
        return "decode steps run without CUDA graphs, as asked"
    if name == "tensorrt-rtx":
        return (
            "decode steps run without CUDA graphs: TensorRT-RTX changes kernels while it runs, "
            "and what was captured would stay with the old ones"
        )
    return None


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _choose_target(bundle: Bundle, target: str | None) -> str:
    found = engine_targets(bundle.path)
    if target is None and len(found) == 1:
        return found[0]
    if target is not None and target in found:
        return target
    wanted = f"has no engines for target {target}" if target else "has no engines"
    if found and target is None:
        raise BackendError(
            f"{bundle.path} has engines for {', '.join(found)}; choose one with --target"
        )
    raise BackendError(
        f"{bundle.path} {wanted}{f', only for {chr(44).join(found)}' if found else ''}; build "
        f"them on the device with: {rebuild_command(bundle.path, target or 'NAME')}"
    )


def _check_contract(found: Mapping[str, tuple[bool, str]], spec: GraphSpec, remedy: str) -> None:
    """Refuse an engine whose inputs, outputs or types are not the graph's."""
    wanted = {tensor.name: (True, str(tensor.dtype)) for tensor in spec.inputs}
    wanted |= {tensor.name: (False, str(tensor.dtype)) for tensor in spec.outputs}
    for name in [*wanted, *found]:
        if found.get(name) != wanted.get(name):
            raise BackendError(
                f"the engine of {spec.name} has {name} as {_described(found.get(name))}, its "
                f"graph as {_described(wanted.get(name))}; {remedy}"
            )


def _described(tensor: tuple[bool, str] | None) -> str:
    if tensor is None:
        return "nothing"
    is_input, dtype = tensor
    return f"{'input' if is_input else 'output'} {dtype}"
