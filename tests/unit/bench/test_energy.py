"""Energy sensors, each on a file system or a library of the test's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from feather_edge.bench import energy
from feather_edge.bench.energy import open_meters

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")
    return folder


class Clock:
    now_s = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that the test turns, and a sampling thread that never wakes up."""
    clock = Clock()
    monkeypatch.setattr(energy.time, "perf_counter", lambda: clock.now_s)
    monkeypatch.setattr(energy, "SAMPLE_PERIOD_S", 3600)
    return clock


# RAPL


def rapl(root: Path, zone: str, name: str, energy_uj: int, largest: int = 10**9) -> Path:
    folder = root / energy.POWERCAP / zone
    return write(folder, name=name, energy_uj=energy_uj, max_energy_range_uj=largest)


def test_rapl_counts_packages_and_memory_once(tmp_path: Path) -> None:
    first = rapl(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    rapl(tmp_path, "intel-rapl:0:0", "core", 1)
    memory = rapl(tmp_path, "intel-rapl:0:1", "dram", 7)
    rapl(tmp_path, "intel-rapl:1", "psys", 1)
    with open_meters("cpu", root=tmp_path) as meters:
        before = meters.joules()
        (first / "energy_uj").write_text("7500000")
        (memory / "energy_uj").write_text("1000007")

        assert meters.names == ("RAPL package-0, dram",)
        assert meters.joules() - before == pytest.approx(3.5)


def test_rapl_tells_the_memory_of_two_packages_apart(tmp_path: Path) -> None:
    for package in (0, 1):
        rapl(tmp_path, f"intel-rapl:{package}", f"package-{package}", 0)
        rapl(tmp_path, f"intel-rapl:{package}:0", "dram", 0)
    with open_meters("cpu", root=tmp_path) as meters:
        for zone in ("0", "0:0", "1", "1:0"):
            (tmp_path / energy.POWERCAP / f"intel-rapl:{zone}" / "energy_uj").write_text("1000000")

        assert meters.joules() == pytest.approx(4.0)


def test_a_rapl_counter_starts_over(tmp_path: Path) -> None:
    folder = rapl(tmp_path, "intel-rapl:0", "package-0", 9_000_000, largest=10_000_000)
    with open_meters("cpu", root=tmp_path) as meters:
        (folder / "energy_uj").write_text("500000")

        assert meters.joules() == pytest.approx(1.5)


def test_rapl_that_only_root_may_read_is_no_sensor(tmp_path: Path) -> None:
    folder = rapl(tmp_path, "intel-rapl:0", "package-0", 1)
    (folder / "energy_uj").unlink()  # as root, who runs tests in containers, may read everything

    assert open_meters("cpu", root=tmp_path).names == ()


# Boards


def ina3221(root: Path, number: int, rails: dict[str, tuple[int, int]]) -> Path:
    """Write channels of (millivolts, milliamperes)."""
    folder = write(root / energy.HWMON / f"hwmon{number}", name="ina3221")
    for channel, (name, (millivolts, milliamperes)) in enumerate(rails.items(), start=1):
        (folder / f"in{channel}_label").write_text(f"{name}\n")
        (folder / f"in{channel}_input").write_text(f"{millivolts}\n")
        (folder / f"curr{channel}_input").write_text(f"{milliamperes}\n")
    (folder / "in7_label").write_text("sum of shunt voltages\n")
    return folder


ORIN_NANO = {"VDD_IN": (5000, 1000), "VDD_CPU_GPU_CV": (5000, 400), "VDD_SOC": (5000, 300)}


def test_power_of_the_module_over_time(tmp_path: Path, clock: Clock) -> None:
    folder = ina3221(tmp_path, 3, ORIN_NANO)
    with open_meters("cuda", root=tmp_path) as meters:
        assert meters.names == ("board rails VDD_IN",)
        assert meters.joules() == 0
        clock.now_s = 2.0
        assert meters.joules() == pytest.approx(10.0)  # 5 W for 2 s
        (folder / "curr1_input").write_text("3000")
        clock.now_s = 3.0
        assert meters.joules() == pytest.approx(20.0)  # 5 W to 15 W within a second


def test_agx_orin_is_the_sum_of_its_three_supplies(tmp_path: Path, clock: Clock) -> None:
    rails = {"VDD_GPU_SOC": (10000, 500), "VDD_CPU_CV": (10000, 200), "VIN_SYS_5V0": (5000, 600)}
    ina3221(tmp_path, 2, rails)
    ina3221(tmp_path, 4, {"NC": (0, 0), "VDDQ_VDD2_1V8AO": (5000, 100)})
    with open_meters("cuda", root=tmp_path) as meters:
        clock.now_s = 1.0

        assert meters.joules() == pytest.approx(5 + 2 + 3)


def test_the_input_of_a_thor_comes_before_its_rails(tmp_path: Path, clock: Clock) -> None:
    ina3221(tmp_path, 1, {"VDD_GPU": (10000, 500)})
    write(tmp_path / energy.HWMON / "hwmon2", name="ina238", power1_input=42_000_000)
    with open_meters("cuda", root=tmp_path) as meters:
        clock.now_s = 0.5

        assert meters.names == ("board rails VIN",)
        assert meters.joules() == pytest.approx(21.0)


def test_rails_that_say_nothing_of_the_module_are_no_sensor(tmp_path: Path) -> None:
    ina3221(tmp_path, 1, {"VDD_GPU": (10000, 500)})
    write(tmp_path / energy.HWMON / "hwmon0", name="nvme")

    assert open_meters("cpu", root=tmp_path).names == ()


def test_the_sampling_thread_ends(tmp_path: Path) -> None:
    ina3221(tmp_path, 3, ORIN_NANO)
    with open_meters("cuda", root=tmp_path):
        names = {thread.name for thread in energy.threading.enumerate()}
        assert "energy" in names
    assert "energy" not in {thread.name for thread in energy.threading.enumerate()}


# NVML


class FakeNvml:
    """The functions of the driver's library that are called."""

    def __init__(self, *, status: int = 0) -> None:
        self.millijoules = 1000
        self.is_open = False
        self._status = status

    def __getattr__(self, name: str) -> Any:
        return {
            "nvmlInit_v2": lambda: self._open(True),
            "nvmlShutdown": lambda: self._open(False),
            "nvmlDeviceGetHandleByIndex_v2": lambda _, device: self._give(device, 7),
            "nvmlDeviceGetTotalEnergyConsumption": self._energy,
            "nvmlDeviceGetName": lambda _, text, size: setattr(text, "value", b"RTX 4090"),
        }[name]

    def _open(self, is_open: bool) -> int:
        self.is_open = is_open
        return 0

    def _give(self, reference: Any, value: int) -> int:
        reference._obj.value = value
        return 0

    def _energy(self, device: Any, energy: Any) -> int:
        assert device.value == 7
        self._give(energy, self.millijoules)
        return self._status


def test_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeNvml()
    monkeypatch.setattr(energy, "load_library", lambda _: library)
    with open_meters("cuda", root=tmp_path) as meters:
        before = meters.joules()
        library.millijoules = 3500

        assert meters.names == ("NVML RTX 4090",)
        assert meters.joules() - before == pytest.approx(2.5)
    assert not library.is_open


def test_nvml_is_not_asked_for_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "load_library", lambda _: FakeNvml())

    assert open_meters("cpu", root=tmp_path).names == ()


def test_a_board_that_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeNvml(status=3)
    monkeypatch.setattr(energy, "load_library", lambda _: library)

    assert open_meters("cuda", root=tmp_path).names == ()
    assert not library.is_open


def test_no_driver_of_nvidia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(energy, "load_library", missing)

    assert open_meters("cuda", root=tmp_path).names == ()
