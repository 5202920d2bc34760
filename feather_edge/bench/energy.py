"""Energy that this machine says it has used.

Three kinds of sensors, none of which needs a package:

* Jetson: the INA3221 and INA238 on the board tell voltage and current of its supply rails. The
  rail of the whole module is taken, where there is one; AGX Orin has none, its module is the sum
  of three. They tell power, which a thread adds up.
* x86: RAPL counts the energy of processor packages and memory. Most kernels let only root read it.
* NVIDIA boards: NVML counts the energy of the board since its driver was loaded.

A sensor counts everything that runs on its device, idle power included.
"""

from __future__ import annotations

import ctypes
import math
import threading
import time
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from typing_extensions import Self

__all__ = [
    "BoardMeter",
    "Meter",
    "Meters",
    "NvmlMeter",
    "RaplMeter",
    "load_library",
    "open_meters",
]

HWMON = "sys/class/hwmon"
POWERCAP = "sys/class/powercap"
NVML_LIBRARY = "libnvidia-ml.so.1"
WHOLE_MODULE_RAILS = ("VIN", "VDD_IN")
AGX_ORIN_RAILS = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
"""Its fourth, VDDQ_VDD2_1V8AO, is fed by the last of these."""
SAMPLE_PERIOD_S = 0.02


class Meter(ABC):
    """A sensor that counts energy.

    Attributes:
        name: what is measured, for the report.
    """

    name: str

    @abstractmethod
    def joules(self) -> float:
        """Return the energy used since some moment in the past."""

    def close(self) -> None:  # noqa: B027 - most meters hold nothing
        """Let go of the sensor."""


class Meters:
    """All sensors that belong to a device, as one; a context manager."""

    def __init__(self, meters: Iterable[Meter]) -> None:
        self._meters = tuple(meters)

    @property
    def names(self) -> tuple[str, ...]:
        """What is measured; empty without a sensor."""
        return tuple(meter.name for meter in self._meters)

    def joules(self) -> float:
        """Return the energy that all of them have counted."""
        return sum(meter.joules() for meter in self._meters)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for meter in self._meters:
            meter.close()


def open_meters(device: str, *, root: Path = Path("/")) -> Meters:
    """Return the sensors of this machine; on a board with its own, those are all there is.

    Args:
        device: where graphs run; NVML is asked for ``cuda`` only, since an idle board is not ours.
        root: of the file system, another one in tests.
    """
    board = BoardMeter.open(root)
    if board is not None:
        return Meters([board])
    meters: list[Meter | None] = [RaplMeter.open(root)]
    if device == "cuda":
        meters.append(NvmlMeter.open())
    return Meters(meter for meter in meters if meter is not None)


class RaplMeter(Meter):
    """Counters of processor packages, and of the memory where it is counted apart."""

    def __init__(self, zones: dict[str, Path]) -> None:
        self.name = f"RAPL {', '.join(zones)}"
        self._files = {zone: folder / "energy_uj" for zone, folder in zones.items()}
        self._ranges = {z: _number(f / "max_energy_range_uj") for z, f in zones.items()}
        self._last = {zone: _number(file) for zone, file in self._files.items()}
        self._microjoules = 0

    @classmethod
    def open(cls, root: Path) -> RaplMeter | None:
        """Return the meter, or None where there is none that this user may read."""
        zones = {}
        for folder in sorted((root / POWERCAP).glob("*-rapl:*")):
            try:
                name = (folder / "name").read_text(encoding="utf-8").strip()
                _number(folder / "energy_uj")
            except (OSError, ValueError):
                continue
            # Cores lie within packages, and "psys" around them.
            if name.startswith("package") or name == "dram":
                zones[f"{name} ({folder.name})" if name in zones else name] = folder
        return cls(zones) if zones else None

    def joules(self) -> float:
        """See ``Meter.joules``; a counter that has started over since is no loss."""
        for zone, file in self._files.items():
            now = _number(file)
            step = now - self._last[zone]
            self._microjoules += step if step >= 0 else step + self._ranges[zone]
            self._last[zone] = now
        return self._microjoules / 1e6


class BoardMeter(Meter):
    """Power of supply rails, added up by a thread."""

    def __init__(self, rails: dict[str, Callable[[], float]]) -> None:
        self.name = f"board rails {', '.join(rails)}"
        self._rails = tuple(rails.values())
        self._joules = 0.0
        self._then_s, self._then_watts = time.perf_counter(), self._watts()
        self._lock = threading.Lock()
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="energy", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, root: Path) -> BoardMeter | None:
        """Return the meter, or None where the board has no rail that stands for the module."""
        rails = dict(_board_rails(root))
        for name in WHOLE_MODULE_RAILS:
            if name in rails:
                return cls({name: rails[name]})
        if set(AGX_ORIN_RAILS) <= rails.keys():
            return cls({name: rails[name] for name in AGX_ORIN_RAILS})
        return None

    def joules(self) -> float:
        """See ``Meter.joules``."""
        self._add_up()
        return self._joules

    def close(self) -> None:
        """Stop the thread."""
        self._is_closed.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._is_closed.wait(SAMPLE_PERIOD_S):
            self._add_up()

    def _add_up(self) -> None:
        with self._lock:
            now_s, watts = time.perf_counter(), self._watts()
            self._joules += (now_s - self._then_s) * (watts + self._then_watts) / 2
            self._then_s, self._then_watts = now_s, watts

    def _watts(self) -> float:
        return sum(rail() for rail in self._rails)


class NvmlMeter(Meter):
    """Energy of the first NVIDIA board, from the library of its driver."""

    def __init__(self, library: Any, device: ctypes.c_void_p) -> None:
        self._library = library
        self._device = device
        self.name = f"NVML {self._board_name()}"

    @classmethod
    def open(cls) -> NvmlMeter | None:
        """Return the meter, or None where there is no board that counts."""
        try:
            library = load_library(NVML_LIBRARY)
        except OSError:
            return None
        if library.nvmlInit_v2() != 0:
            return None
        device, energy = ctypes.c_void_p(), ctypes.c_ulonglong()
        if (
            library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) != 0
            # Boards before Volta do not count.
            or library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(energy)) != 0
        ):
            library.nvmlShutdown()
            return None
        return cls(library, device)

    def joules(self) -> float:
        """See ``Meter.joules``."""
        energy = ctypes.c_ulonglong()
        self._library.nvmlDeviceGetTotalEnergyConsumption(self._device, ctypes.byref(energy))
        return energy.value / 1e3

    def close(self) -> None:
        """Let go of the library."""
        self._library.nvmlShutdown()

    def _board_name(self) -> str:
        text = ctypes.create_string_buffer(96)
        self._library.nvmlDeviceGetName(self._device, text, len(text))
        return text.value.decode(errors="replace")


def load_library(name: str) -> Any:
    """Return a shared library; a fake one takes the place of this function."""
    return ctypes.CDLL(name)


def _board_rails(root: Path) -> Iterable[tuple[str, Callable[[], float]]]:
    """Yield the rails that can be read, each with a function that returns its watts."""
    for folder in sorted((root / HWMON).glob("hwmon*")):
        try:
            chip = (folder / "name").read_text(encoding="utf-8").strip()
        except OSError:
            continue
        if chip == "ina238":  # AGX Thor: the one at the input of the carrier board
            yield from _readable("VIN", partial(_scaled_product, folder / "power1_input"))
        if chip == "ina3221":
            for label in sorted(folder.glob("in?_label")):
                name = label.read_text(encoding="utf-8").strip()
                parts = (folder / f"{kind}{label.name[2]}_input" for kind in ("in", "curr"))
                yield from _readable(name, partial(_scaled_product, *parts))


def _scaled_product(*files: Path) -> float:
    """Return watts, of a file of microwatts or of millivolts and milliamperes."""
    return math.prod(_number(file) for file in files) / 1e6


def _readable(name: str, watts: Callable[[], float]) -> Iterable[tuple[str, Callable[[], float]]]:
    try:
        watts()
    except (OSError, ValueError):  # an unused channel, such as the sum of shunt voltages
        return
    yield name, watts


def _number(file: Path) -> int:
    return int(file.read_text(encoding="utf-8"))
