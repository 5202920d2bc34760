"""Recipes: what to export, as a TOML file or as options.

Named recipes live in ``<stage>/recipes/*.toml`` of a checkout and travel inside the wheel; both
places look the same from here. A key that nobody knows is an error, never ignored.
"""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import msgspec

from feather_edge.errors import RecipeError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "CriterionName",
    "ExportRecipe",
    "OpsetName",
    "PreCriterionName",
    "Precision",
    "SelectionName",
    "Stage",
    "default_recipe_name",
    "describe_recipe",
    "load_recipe",
    "override",
    "recipe_folder",
    "recipe_names",
]

CriterionName = Literal[
    "feather", "fastv", "fastv-full", "pyramiddrop", "ivc", "uniform", "random", "none"
]
PreCriterionName = Literal["uniform", "random", "divprune", "dart", "cdpruner", "none"]
SelectionName = Literal["fill", "union"]
Precision = Literal["fp32", "fp16"]
OpsetName = Literal["18", "23", "both"]
Stage = Literal["export", "engines"]


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
        opset: of the graphs; both forms share one file of weights.
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
    opset: OpsetName = "both"
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
        _check_keep_ratio(self.keep_ratio, self.stages)
        if self.prune == "feather" and len(self.keep_ratio) == 1 and len(self.stages or ()) > 2:
            raise RecipeError(
                f"keep_ratio has one value for {len(self.stages or ())} stages; feather with one "
                "value has two stages in the paper, so give one for each stage"
            )
        if not 0 < self.pre_keep_ratio <= 1:
            raise RecipeError(
                f"pre_keep_ratio {self.pre_keep_ratio} is out of range; it must be in (0, 1]"
            )
        for name in ("stride", "seed"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name} is {getattr(self, name)}; it must be 0 or more")


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
    path = _find(str(name_or_file))
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {path} is no valid TOML: {error}") from error
    return _parse(values, source=str(path))


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


def describe_recipe(recipe: ExportRecipe) -> str:
    """Return a recipe as TOML, every key of it; a default without a TOML form as a comment."""
    values = msgspec.to_builtins(recipe)
    return "\n".join(
        f"# {key}: by the depth of the decoder" if value is None else f"{key} = {_toml(value)}"
        for key, value in values.items()
    )


def _toml(value: str | float | tuple[float, ...]) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _find(name_or_file: str) -> Path:
    """Return the file that a recipe's name or path stands for."""
    if name_or_file.endswith(".toml") or "/" in name_or_file or "\\" in name_or_file:
        path = Path(name_or_file).expanduser()
        if not path.is_file():
            raise RecipeError(f"recipe {path} is not a file; give a name or the path of one")
        return path
    names = recipe_names()
    if name_or_file not in names:
        raise RecipeError(
            f"recipe {name_or_file!r} is unknown{_hint(name_or_file, names)}; "
            f"choose {', '.join(names)}, or give the path of a .toml file"
        )
    return recipe_folder() / f"{name_or_file}.toml"


def _parse(values: dict[str, Any], *, source: str) -> ExportRecipe:
    """Check keys and values of a parsed file; messages start with its name."""
    known = ExportRecipe.__struct_fields__
    for key in values:
        if key not in known:
            raise RecipeError(
                f"recipe {source}: key {key!r} is unknown{_hint(key, known)}; "
                f"allowed are {', '.join(known)}"
            )
    try:
        return msgspec.convert(values, ExportRecipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"recipe {source}: {_in_toml_words(str(error))}") from error
    except RecipeError as error:
        raise RecipeError(f"recipe {source}: {error}") from error


def _in_toml_words(message: str) -> str:
    """Turn ``Expected `int`, got `str` - at `$.stride``` into ``stride: expected ...``."""
    what, _, place = message.rpartition(" - at ")
    what = what.replace("array | null", "array").replace("`", "")
    key = place.strip("`").removeprefix("$.")
    if what.startswith("Invalid enum value"):
        choices = ", ".join(get_args(get_type_hints(ExportRecipe)[key]))
        return f"{key} is {what.removeprefix('Invalid enum value ')}; choose {choices}"
    return f"{key}: {what[:1].lower()}{what[1:]}"


def _hint(word: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word.replace("-", "_"), known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise RecipeError(f"{name} is {value!r}; choose {', '.join(allowed)}")


def _check_stages(stages: tuple[int, ...] | None) -> None:
    for layer in stages or ():
        if layer < 1:
            raise RecipeError(
                f"stages {list(stages or ())}: tokens are scored by the layer before a stage, "
                f"so {layer} is too early; the first possible is 1"
            )
    if stages and list(stages) != sorted(set(stages)):
        raise RecipeError(f"stages {list(stages)} must be ascending and without repeats")


def _check_keep_ratio(keep_ratio: tuple[float, ...], stages: tuple[int, ...] | None) -> None:
    if not keep_ratio:
        raise RecipeError("keep_ratio is empty; give one value, or one for each stage")
    for ratio in keep_ratio:
        if not 0 < ratio <= 1:
            raise RecipeError(f"keep_ratio {ratio} is out of range; it must be in (0, 1]")
    if list(keep_ratio) != sorted(keep_ratio, reverse=True):
        raise RecipeError(
            f"keep_ratio {list(keep_ratio)} grows; each value is a share of all visual tokens, "
            "so a later stage cannot keep more than an earlier one"
        )
    if len(keep_ratio) > 1 and stages is not None and len(keep_ratio) != len(stages):
        raise RecipeError(
            f"keep_ratio has {len(keep_ratio)} values for {len(stages)} stages; "
            "give one value, or one for each stage"
        )
