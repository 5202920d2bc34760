"""Targets: what they run on, and what of it this machine can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from feather_edge.deploy import target as module
from feather_edge.deploy.target import read_target, suit_recipe
from feather_edge.engines.jobs import Device
from feather_edge.errors import RecipeError
from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[Device | None]:
    """The GPU of this machine; none at first."""
    found: list[Device | None] = [None]
    monkeypatch.setattr(module, "current_device", lambda: found[0])
    return found


def device(capability: str) -> Device:
    return Device(name="GPU", compute_capability=capability, cuda_version="12.6")


def test_the_cpu_has_no_engines(gpu: list[Device | None]) -> None:
    cpu = read_target("cpu")
    assert (cpu.name, cpu.engines, cpu.backend) == ("cpu", None, "onnxruntime")
    assert cpu.obstacle is None
    assert cpu.builds_here
    assert read_target("cpu", backend="openvino").backend == "openvino"


def test_a_backend_is_for_the_cpu() -> None:
    message = "backend openvino runs the graphs of target cpu; target rtx has engines of tensorrt-"
    with pytest.raises(RecipeError, match=message):
        read_target("rtx", backend="openvino")


def test_an_unknown_target() -> None:
    with pytest.raises(RecipeError, match="recipe 'orin' is unknown"):
        read_target("orin")


def test_a_file_is_a_target(tmp_path: Path) -> None:
    file = tmp_path / "my-robot.toml"
    file.write_text('backend = "tensorrt"\n')
    found = read_target(str(file))
    assert (found.name, found.spelling, found.backend) == ("my-robot", str(file), "tensorrt")


def test_without_a_gpu(gpu: list[Device | None]) -> None:
    orin, rtx = read_target("orin-nano-8gb"), read_target("rtx")
    assert "no NVIDIA GPU was found here" in (orin.obstacle or "")
    assert not orin.builds_here
    assert rtx.obstacle is not None
    assert rtx.builds_here  # TensorRT-RTX needs no GPU to build


def test_on_another_gpu(gpu: list[Device | None]) -> None:
    gpu[0] = device("8.9")
    assert read_target("orin-nano-8gb").obstacle == (
        "GPU has compute capability 8.9, orin-nano-8gb is for 8.7"
    )
    assert read_target("desktop").obstacle is None


def test_on_the_device_itself(gpu: list[Device | None]) -> None:
    gpu[0] = device("8.7")
    orin = read_target("orin-nano-8gb")
    assert orin.obstacle is None
    assert orin.builds_here


@pytest.mark.parametrize(
    ("recipe", "is_named", "expected"),
    [
        (ExportRecipe(), False, ("fp16", None)),
        (ExportRecipe(precision="fp32"), True, ("fp32", None)),
        (ExportRecipe(precision="bf16"), False, ("bf16", None)),
        (ExportRecipe(precision="int4"), True, ("int4", "fp16")),
        (ExportRecipe(precision="int8", activations="fp32"), True, ("int8", "fp32")),
    ],
)
def test_an_engine_runs_in_the_type_of_its_device(
    recipe: ExportRecipe, is_named: bool, expected: tuple[str, str | None]
) -> None:
    found = suit_recipe(recipe, read_target("orin-nano-8gb"), is_named=is_named)
    assert (found.precision, found.activations) == expected
    assert suit_recipe(recipe, read_target("cpu"), is_named=is_named) == recipe
