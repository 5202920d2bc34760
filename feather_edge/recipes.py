"""Recipes: what to export and what to build, as a TOML file or as options.

Named recipes live in ``<stage>/recipes/*.toml`` of a checkout and travel inside the wheel; both
places look the same from here. A key that nobody knows is an error, never ignored.
"""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

import msgspec

from feather_edge.errors import RecipeError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "CriterionName", "EngineBackend", "EngineOpset", "EngineProfiles", "EngineRecipe",
    "ExportRecipe", "OpsetName", "PreCriterionName", "Precision", "SelectionName", "Stage",
    "default_recipe_name", "describe_recipe", "load_engine_recipe", "load_recipe", "override",
    "override_engine", "recipe_folder", "recipe_names",
]  # fmt: skip

CriterionName = Literal[
    "feather", "fastv", "fastv-full", "pyramiddrop", "pyramiddrop-reset", "ivc", "ivc-value",
    "uniform", "random", "none",
]  # fmt: skip
PreCriterionName = Literal["uniform", "random", "divprune", "dart", "cdpruner", "pooling", "none"]
SelectionName = Literal["fill", "union"]
Precision = Literal["fp32", "fp16"]
OpsetName = Literal["18", "23", "24", "all"]
EngineBackend = Literal["tensorrt", "tensorrt-rtx"]
EngineOpset = Literal["auto", "18", "23", "24"]
EngineProfiles = Literal["two", "one"]
Stage = Literal["export", "engines"]

_RecipeType = TypeVar("_RecipeType", bound=msgspec.Struct)


class ExportRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an export decides. Only `stages`, `precision` and `opset` are fixed in the graphs.

    Attributes:
        stages: visual tokens are pruned before these decoder layers, ascending, counted from 0.
            Empty is an unsplit decoder. None stands for a quarter and a half of the depth, with
            three keep ratios three quarters too, or for an unsplit decoder where `prune` is
            ``none``.
        prune: criterion of a request that names none.
        keep_ratio: one value is the method's own parameter, from which it derives every stage;
            several are the share of the original visual tokens left after each stage.
        stride: step of FEATHER's uniform grid; 0 for no grid.
        selection: ``fill`` keeps a constant count, ``union`` the paper's data-dependent one.
        precision: of weights and activations.
        opset: of the graphs; all forms share one file of weights.
        seed: of the criterion ``random``.
        pre_prune: criterion before the decoder, on vision features, of a request that names none.
        pre_keep_ratio: share of the visual tokens that it lets into the decoder.
    """

    stages: tuple[int, ...] | None = None
    prune: CriterionName = "feather"
    keep_ratio: tuple[float, ...] = (0.3,)
    stride: int = 3
    selection: SelectionName = "fill"
    precision: Precision = "fp32"
    opset: OpsetName = "all"
    seed: int = 0
    pre_prune: PreCriterionName = "none"
    pre_keep_ratio: float = 0.5

    def __post_init__(self) -> None:
        _check_choice("prune", self.prune, get_args(CriterionName))
        _check_choice("pre_prune", self.pre_prune, get_args(PreCriterionName))
        _check_choice("selection", self.selection, get_args(SelectionName))
        _check_choice("precision", self.precision, get_args(Precision))
        _check_choice("opset", self.opset, get_args(OpsetName))
        _check_stages(self.stages)
        _check_keep_ratio("keep_ratio", self.keep_ratio, self.stages)
        if self.prune == "feather" and len(self.keep_ratio) == 1 and len(self.stages or ()) > 2:
            raise RecipeError(
                f"keep_ratio has one value for {len(self.stages or ())} stages; feather with one "
                "value has two stages in the paper, so give one for each stage"
            )
        _check_keep_ratio("pre_keep_ratio", (self.pre_keep_ratio,), None)
        for name in ("stride", "seed"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name} is {getattr(self, name)}; it must be 0 or more")


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
        precision: that suits the device; a bundle of another one builds, with a note.
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
    precision: Precision = "fp16"
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
        _check_choice("backend", self.backend, get_args(EngineBackend))
        _check_choice("precision", self.precision, get_args(Precision))
        _check_choice("opset", self.opset, get_args(EngineOpset))
        _check_choice("profiles", self.profiles, get_args(EngineProfiles))
        for capability in self.compute_capabilities:
            _check_form("compute_capabilities", capability, r"\d{1,2}\.\d", "such as 8.7")
        _check_form("tensorrt_version", self.tensorrt_version, r"\d+(\.\d+)+", "such as 10.3")
        for limit in self.pool_limit:
            _check_form(
                "pool_limit", limit, r"(workspace|tactic_dram):\d+[KMG]?", "such as workspace:2G"
            )
        if not 0 <= self.builder_optimization_level <= 5:
            level = self.builder_optimization_level
            raise RecipeError(f"builder_optimization_level is {level}; it must be 0 to 5")
        _check_limits(self)
        _check_keep_ratio("max_keep_ratio", self.max_keep_ratio, None)


def recipe_folder(stage: Stage = "export") -> Path:
    """Return the folder that holds the named recipes of a stage.

    An installed wheel carries them inside the package; a checkout has them at its top level.
    """
    package = Path(__file__).parent
    packaged = package / "_recipes" / stage
    return packaged if packaged.is_dir() else package.parent / stage / "recipes"


def recipe_names(stage: Stage = "export") -> tuple[str, ...]:
    """Return the names of the shipped recipes of a stage, sorted."""
    return tuple(sorted(path.stem for path in recipe_folder(stage).glob("*.toml")))


def default_recipe_name(checkpoint: str) -> str:
    """Return the recipe of an export that names none: the shipped model ``demo`` has its own."""
    return "scene-vlm" if checkpoint == "demo" else "feather"


def load_recipe(name_or_file: str | Path) -> ExportRecipe:
    """Read an export recipe.

    Args:
        name_or_file: name of a shipped recipe, or path of a TOML file. Whatever ends in
            ``.toml`` or holds a path separator is a path.

    Raises:
        RecipeError: if there is no such recipe, or it does not parse, or a key or a value in it
            is not allowed.
    """
    return _load(name_or_file, ExportRecipe, stage="export")


def load_engine_recipe(name_or_file: str | Path) -> EngineRecipe:
    """Read the recipe of a target; arguments and errors as of ``load_recipe``."""
    return _load(name_or_file, EngineRecipe, stage="engines")


def override(
    recipe: ExportRecipe,
    *,
    stages: tuple[int, ...] | None = None,
    prune: CriterionName | None = None,
    keep_ratio: tuple[float, ...] | None = None,
    stride: int | None = None,
    selection: SelectionName | None = None,
    precision: Precision | None = None,
    opset: OpsetName | None = None,
    seed: int | None = None,
    pre_prune: PreCriterionName | None = None,
    pre_keep_ratio: float | None = None,
) -> ExportRecipe:
    """Return `recipe` with the given options in place of its own; None keeps what it says.

    Raises:
        RecipeError: if the outcome is not allowed.
    """
    options: dict[str, Any] = {
        "stages": stages,
        "prune": prune,
        "keep_ratio": keep_ratio,
        "stride": stride,
        "selection": selection,
        "precision": precision,
        "opset": opset,
        "seed": seed,
        "pre_prune": pre_prune,
        "pre_keep_ratio": pre_keep_ratio,
    }
    given = {name: value for name, value in options.items() if value is not None}
    return msgspec.structs.replace(recipe, **given)


def override_engine(recipe: EngineRecipe, **options: Any) -> EngineRecipe:
    """Return `recipe` with the given fields in place of its own; None keeps what it says.

    Raises:
        RecipeError: if the outcome is not allowed.
    """
    given = {name: value for name, value in options.items() if value is not None}
    return msgspec.structs.replace(recipe, **given)


def describe_recipe(recipe: ExportRecipe | EngineRecipe) -> str:
    """Return a recipe as TOML, every key of it; a default without a TOML form as a comment."""
    values = msgspec.to_builtins(recipe)
    return "\n".join(
        f"# {key}: {_ABSENT[key]}" if value is None else f"{key} = {_toml(value)}"
        for key, value in values.items()
    )


_ABSENT = {
    "stages": "by the depth of the decoder",
    "shared_memory_mib": "the GPU has memory of its own",
    "timing_cache": "in the user's cache folder",
}
"""What the absence of a key means."""


def _toml(value: str | float | tuple[float, ...] | tuple[str, ...]) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value)


def _load(name_or_file: str | Path, kind: type[_RecipeType], *, stage: Stage) -> _RecipeType:
    path = _find(str(name_or_file), stage)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {path} is no valid TOML: {error}") from error
    return _parse(values, kind, source=str(path))


def _find(name_or_file: str, stage: Stage) -> Path:
    """Return the file that a recipe's name or path stands for."""
    if name_or_file.endswith(".toml") or "/" in name_or_file or "\\" in name_or_file:
        path = Path(name_or_file).expanduser()
        if not path.is_file():
            raise RecipeError(f"recipe {path} is not a file; give a name or the path of one")
        return path
    names = recipe_names(stage)
    if name_or_file not in names:
        raise RecipeError(
            f"recipe {name_or_file!r} is unknown{_hint(name_or_file, names)}; "
            f"choose {', '.join(names)}, or give the path of a .toml file"
        )
    return recipe_folder(stage) / f"{name_or_file}.toml"


def _parse(values: dict[str, Any], kind: type[_RecipeType], *, source: str) -> _RecipeType:
    """Check keys and values of a parsed file; messages start with its name."""
    known = kind.__struct_fields__
    for key in values:
        if key not in known:
            raise RecipeError(
                f"recipe {source}: key {key!r} is unknown{_hint(key, known)}; "
                f"allowed are {', '.join(known)}"
            )
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise RecipeError(f"recipe {source}: {_in_toml_words(str(error), kind)}") from error
    except RecipeError as error:
        raise RecipeError(f"recipe {source}: {error}") from error


def _in_toml_words(message: str, kind: type[msgspec.Struct]) -> str:
    """Turn ``Expected `int`, got `str` - at `$.stride``` into ``stride: expected ...``."""
    what, _, place = message.rpartition(" - at ")
    what = what.replace("array | null", "array").replace("`", "")
    key = place.strip("`").removeprefix("$.")
    if what.startswith("Invalid enum value"):
        choices = ", ".join(get_args(get_type_hints(kind)[key]))
        return f"{key} is {what.removeprefix('Invalid enum value ')}; choose {choices}"
    return f"{key}: {what[:1].lower()}{what[1:]}"


def _hint(word: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word.replace("-", "_"), known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise RecipeError(f"{name} is {value!r}; choose {', '.join(allowed)}")


def _check_form(name: str, value: str, pattern: str, example: str) -> None:
    if not re.fullmatch(pattern, value):
        raise RecipeError(f"{name} holds {value!r}, which is not of the form {example}")


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


def _check_stages(stages: tuple[int, ...] | None) -> None:
    for layer in stages or ():
        if layer < 1:
            raise RecipeError(
                f"stages {list(stages or ())}: tokens are scored by the layer before a stage, "
                f"so {layer} is too early; the first possible is 1"
            )
    if stages and list(stages) != sorted(set(stages)):
        raise RecipeError(f"stages {list(stages)} must be ascending and without repeats")


def _check_keep_ratio(
    name: str, keep_ratio: tuple[float, ...], stages: tuple[int, ...] | None
) -> None:
    if not keep_ratio:
        raise RecipeError(f"{name} is empty; give one value, or one for each stage")
    for ratio in keep_ratio:
        if not 0 < ratio <= 1:
            raise RecipeError(f"{name} {ratio} is out of range; it must be in (0, 1]")
    if list(keep_ratio) != sorted(keep_ratio, reverse=True):
        raise RecipeError(
            f"{name} {list(keep_ratio)} grows; each value is a share of all visual tokens, "
            "so a later stage cannot keep more than an earlier one"
        )
    if len(keep_ratio) > 1 and stages is not None and len(keep_ratio) != len(stages):
        raise RecipeError(
            f"{name} has {len(keep_ratio)} values for {len(stages)} stages; "
            "give one value, or one for each stage"
        )
