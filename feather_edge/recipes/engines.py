"""Recipe of a build of engines: a device, limits and builder settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from feather_edge.errors import RecipeError
from feather_edge.recipes.checks import check_choice, check_form, check_keep_ratio
from feather_edge.recipes.precision import FloatPrecision
from feather_edge.recipes.reading import load

if TYPE_CHECKING:
    from pathlib import Path

EngineBackend = Literal["tensorrt", "tensorrt-rtx"]
EngineOpset = Literal["auto", "18", "23", "24"]
EngineProfiles = Literal["two", "one"]


class EngineRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a build of engines decides: a device, limits and builder settings.

    Attributes:
        description: of the device, for people.
        backend: which TensorRT builds and runs the engines.
        compute_capabilities: as ``8.7``; the device must have one of them. Empty takes the
            device's own.
        tensorrt_version: that the device's software brings; a dry run without TensorRT plans
            for it.
        shared_memory_mib: of CPU and GPU together; None where the GPU has its own.
        system_memory_mib: of it, what the system itself takes: kernel, desktop, services.
        precision: of activations that suits the device; a bundle of another one builds, with a
            note.
        opset: of the graphs to build; ``auto`` is the newest that the TensorRT version reads.
        max_prompt_tokens: text tokens of a prompt, beside the visual ones.
        max_visual_tokens: visual tokens of all images of a request.
        max_cache_capacity: tokens of a sequence, prompt and answer, before any pruning.
        max_batch_size: sequences at once.
        max_keep_ratio: share of the visual tokens that may go on after each stage; one value
            holds for every stage. 1 permits every request, less saves memory.
        opt_prompt_tokens: text tokens that engines are tuned for.
        profiles: ``two`` tunes a decoder engine for prefill and for decode, at the price of a
            copy of the weights for each; ``one`` serves both with one copy, tuned for prefill.
        builder_optimization_level: 0 builds fastest, 5 searches longest.
        pool_limit: memory pools of the builder, as ``workspace:2G``.
        timing_cache: folder of the timing caches; None is the user's cache folder.
    """

    description: str = ""
    backend: EngineBackend = "tensorrt"
    compute_capabilities: tuple[str, ...] = ()
    tensorrt_version: str = "10.3"
    shared_memory_mib: int | None = None
    system_memory_mib: int = 0
    precision: FloatPrecision = "fp16"
    opset: EngineOpset = "auto"
    max_prompt_tokens: int = 512
    max_visual_tokens: int = 1024
    max_cache_capacity: int = 2048
    max_batch_size: int = 1
    max_keep_ratio: tuple[float, ...] = (1.0,)
    opt_prompt_tokens: int = 64
    profiles: EngineProfiles = "two"
    builder_optimization_level: int = 3
    pool_limit: tuple[str, ...] = ()
    timing_cache: str | None = None

    def __post_init__(self) -> None:
        check_choice("backend", self.backend, get_args(EngineBackend))
        check_choice("precision", self.precision, get_args(FloatPrecision))
        check_choice("opset", self.opset, get_args(EngineOpset))
        check_choice("profiles", self.profiles, get_args(EngineProfiles))
        for capability in self.compute_capabilities:
            check_form("compute_capabilities", capability, r"\d{1,2}\.\d", "such as 8.7")
        check_form("tensorrt_version", self.tensorrt_version, r"\d+(\.\d+)+", "such as 10.3")
        for limit in self.pool_limit:
            check_form(
                "pool_limit", limit, r"(workspace|tactic_dram):\d+[KMG]?", "such as workspace:2G"
            )
        if not 0 <= self.builder_optimization_level <= 5:
            level = self.builder_optimization_level
            raise RecipeError(f"builder_optimization_level is {level}; it must be 0 to 5")
        if (
            not 0
            <= self.system_memory_mib
            < (self.shared_memory_mib or self.system_memory_mib + 1)
        ):
            raise RecipeError(
                f"system_memory_mib is {self.system_memory_mib}; it must be 0 or more, and less "
                f"than shared_memory_mib, {self.shared_memory_mib}"
            )
        _check_limits(self)
        check_keep_ratio("max_keep_ratio", self.max_keep_ratio, None)


def load_engine_recipe(name_or_file: str | Path) -> EngineRecipe:
    """Read the recipe of a target; arguments and errors as of ``load_recipe``."""
    return load(name_or_file, EngineRecipe, stage="engines")


def override_engine(recipe: EngineRecipe, **options: Any) -> EngineRecipe:
    """Return `recipe` with the given fields in place of its own; None keeps what it says.

    Raises:
        RecipeError: if the outcome is not allowed.
    """
    given = {name: value for name, value in options.items() if value is not None}
    return msgspec.structs.replace(recipe, **given)


def _check_limits(recipe: EngineRecipe) -> None:
    for name in ("max_prompt_tokens", "max_visual_tokens", "max_batch_size", "opt_prompt_tokens"):
        if getattr(recipe, name) < 1:
            raise RecipeError(f"{name} is {getattr(recipe, name)}; it must be 1 or more")
    rows = recipe.max_prompt_tokens + recipe.max_visual_tokens
    if recipe.max_cache_capacity <= rows:
        raise RecipeError(
            f"max_cache_capacity is {recipe.max_cache_capacity}, which leaves no room for an "
            f"answer: it must be more than max_prompt_tokens + max_visual_tokens, {rows}"
        )
    if recipe.opt_prompt_tokens > recipe.max_prompt_tokens:
        raise RecipeError(
            f"opt_prompt_tokens is {recipe.opt_prompt_tokens}; it must not be more than "
            f"max_prompt_tokens, {recipe.max_prompt_tokens}"
        )
