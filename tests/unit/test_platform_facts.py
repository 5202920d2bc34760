"""What the files of a machine say, and what is made of it; see tests/support/platforms."""

from __future__ import annotations

from pathlib import Path

import pytest

from feather_edge.advice import platform_notes, tensorrt_mismatch, tensorrt_remedy
from feather_edge.platform_facts import PlatformFacts, read_platform

PLATFORMS = Path(__file__).parents[1] / "support" / "platforms"
NAMES = ("jetpack5", "jetpack6", "jetpack7", "desktop", "container")


def facts(name: str) -> PlatformFacts:
    assert (PLATFORMS / name).is_dir()
    return read_platform(PLATFORMS / name)


def test_jetpack_6() -> None:
    assert facts("jetpack6") == PlatformFacts(
        board="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        l4t="36.4.3",
        jetpack="6.2",
        cuda="12.6.11",
        tensorrt="10.3.0.30",
        python_tensorrt="10.3.0.30",
        driver="540.4.0",
        compute_capability="8.7",
        power_mode="15W",
        gpu_clock_mhz=(306, 1020),
        memory_mib=7619,
        free_memory_mib=5957,
        swap_mib=0,
    )


def test_jetpack_5_and_7() -> None:
    five, seven = facts("jetpack5"), facts("jetpack7")
    assert (five.jetpack, five.l4t, five.tensorrt) == ("5.1.2", "35.4.1", "8.5.2")
    assert (five.compute_capability, five.power_mode) == ("8.7", "15W")
    assert (seven.jetpack, seven.l4t, seven.tensorrt) == ("7", "38.2.0", "10.13.3.9")
    assert (seven.compute_capability, seven.power_mode) == ("11.0", "120W")
    assert seven.python_tensorrt is None


def test_machines_that_are_no_jetson() -> None:
    desktop, container = facts("desktop"), facts("container")
    assert (desktop.driver, desktop.cuda) == ("550.54.15", "12.4.0")
    assert desktop.jetpack is desktop.l4t is desktop.board is desktop.tensorrt is None
    assert container.memory_mib == 24111
    assert container.driver is container.cuda is container.power_mode is None


def test_this_machine_and_an_empty_one(tmp_path: Path) -> None:
    assert read_platform().memory_mib
    nothing = read_platform(tmp_path)
    assert {getattr(nothing, name) for name in PlatformFacts.__slots__} == {None}


@pytest.mark.parametrize("file", ["usr/local/cuda/version.json", "var/lib/nvpmodel/status"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b'{"cuda": 3}', b"pmode:"])
def test_files_of_another_kind_say_nothing(tmp_path: Path, file: str, content: bytes) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_bytes(content)
    nothing = read_platform(tmp_path)
    assert nothing.cuda is nothing.power_mode is None


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("jetpack5", "TensorRT 8.5.2 is older than 10.3; upgrade JetPack"),
        ("jetpack6", "which this virtual environment does not see: python3 -m venv --system-site"),
        ("jetpack7", "without its Python package: sudo apt install python3-libnvinfer"),
        ("desktop", "pip install 'feather-edge[tensorrt]'"),
        ("container", "pip install 'feather-edge[tensorrt]'"),
    ],
)
def test_how_to_get_tensorrt(name: str, remedy: str) -> None:
    assert remedy in tensorrt_remedy(facts(name))


@pytest.mark.parametrize(
    ("name", "installed", "mismatch"),
    [
        ("jetpack6", "10.3.0", None),
        ("jetpack6", None, None),
        (
            "jetpack6",
            "10.13.3",
            "TensorRT 10.13.3, JetPack 6.2 has 10.3.0.30: pip uninstall",
        ),
        ("desktop", "10.13.3", None),
        ("desktop", "8.6.1", "is older than 10.3; pip install -U 'feather-edge[tensorrt]'"),
        ("jetpack5", "8.5.2", "is older than 10.3; upgrade JetPack"),
    ],
)
def test_what_does_not_go_together(name: str, installed: str | None, mismatch: str | None) -> None:
    found = tensorrt_mismatch(facts(name), installed)
    assert found is None if mismatch is None else mismatch in (found or "")


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        ("jetpack5", ("JetPack 5.1.2 has TensorRT 8.5.2", "the power mode is 15W")),
        ("jetpack6", ("the power mode is 15W", "7619 MiB of memory and no swap")),
        ("jetpack7", ("the power mode is 120W",)),
        ("desktop", ()),
        ("container", ()),
    ],
)
def test_what_will_surprise(name: str, notes: tuple[str, ...]) -> None:
    found = list(platform_notes(facts(name)))
    assert len(found) == len(notes)
    for note, start in zip(found, notes, strict=True):
        assert note.startswith(start)
