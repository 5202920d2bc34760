"""What a deployment is for: a device with engines, or the CPU of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import msgspec

from feather_edge.engines._device import current_device
from feather_edge.engines.plan import expected_environment, plan_engines
from feather_edge.errors import RecipeError
from feather_edge.recipes import (
    EngineRecipe,
    ExportRecipe,
    FloatPrecision,
    load_engine_recipe,
)

if TYPE_CHECKING:
    from feather_edge.bundle import Bundle
    from feather_edge.engines.plan import EnginePlan

__all__ = ["CPU", "Target", "plan_elsewhere", "read_target", "suit_recipe"]

CPU = "cpu"
"""This machine's own: it runs the graphs as they are, so there are no engines to build."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A target.

    Attributes:
        name: as engines are filed under.
        spelling: as it was asked for: a name, or a file.
        engines: what to build for it; None where graphs run as they are.
        backend: what runs there.
    """

    name: str
    spelling: str
    engines: EngineRecipe | None
    backend: str

    @property
    def builds_here(self) -> bool:
        """Whether what it runs can be made here; TensorRT-RTX alone builds without a GPU."""
        return self.obstacle is None or self.backend == "tensorrt-rtx"

    @property
    def backend_here(self) -> str:
        """What runs here: on another machine than the target, the graphs."""
        return self.backend if self.obstacle is None else "onnxruntime"

    @property
    def target_here(self) -> str | None:
        """Whose engines run here; None where graphs do."""
        return None if self.engines is None or self.obstacle is not None else self.name

    @cached_property
    def obstacle(self) -> str | None:
        """Why this machine is not the target; None where it is, and must not fail."""
        if self.engines is None:
            return None
        device = current_device()
        if device is None:
            return "no NVIDIA GPU was found here (in a container: docker run --runtime nvidia)"
        allowed = self.engines.compute_capabilities
        if allowed and device.compute_capability not in allowed:
            return (
                f"{device.name} has compute capability {device.compute_capability}, {self.name} "
                f"is for {', '.join(allowed)}"
            )
        return None


def read_target(name_or_file: str, *, backend: str | None = None) -> Target:
    """Return the target of a name or of a file.

    Args:
        name_or_file: ``cpu``, or what ``load_engine_recipe`` reads.
        backend: of the CPU; None is onnxruntime.

    Raises:
        RecipeError: if there is no such target, or a backend is named for one with engines.
    """
    if name_or_file == CPU:
        return Target(name=CPU, spelling=CPU, engines=None, backend=backend or "onnxruntime")
    recipe = load_engine_recipe(name_or_file)
    if backend is not None:
        raise RecipeError(
            f"backend {backend} runs the graphs of target {CPU}; target {name_or_file} has "
            f"engines of {recipe.backend}, so leave the backend out"
        )
    return Target(
        name=Path(name_or_file).stem,
        spelling=name_or_file,
        engines=recipe,
        backend=recipe.backend,
    )


def plan_elsewhere(
    target: Target, bundle: Bundle, *, plugin: Path | None
) -> tuple[EnginePlan, ...]:
    """Return the engines that the target will build of a bundle.

    Raises:
        BuildError: if its TensorRT cannot read the bundle.
        RecipeError: if the target has no engines, or its limits do not fit the bundle.
    """
    if target.engines is None:
        raise RecipeError(f"target {target.name} has no engines")
    return plan_engines(
        bundle,
        target.engines,
        expected_environment(target.engines),
        target=target.name,
        plugin=plugin,
    )


def suit_recipe(recipe: ExportRecipe, target: Target, *, is_named: bool) -> ExportRecipe:
    """Return a recipe with activations as the target likes them, where nobody said otherwise.

    Args:
        recipe: what was asked for.
        target: an engine runs in the type that suits its device, a CPU in the recipe's own.
        is_named: whether the precision was asked for in so many words; a recipe's default gives
            way.
    """
    if target.engines is None or recipe.activations is not None:
        return recipe
    suited = target.engines.precision
    if recipe.precision in get_args(FloatPrecision):
        is_default = recipe.precision == ExportRecipe().precision and not is_named
        return msgspec.structs.replace(recipe, precision=suited) if is_default else recipe
    return msgspec.structs.replace(recipe, activations=suited)
