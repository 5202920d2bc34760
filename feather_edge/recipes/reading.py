"""Finding and reading recipes: TOML files, shipped or the user's own.

Named recipes live in ``<stage>/recipes/*.toml`` of a checkout and travel inside the wheel; both
places look the same from here. A key that nobody knows is an error, never ignored.
"""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

import msgspec

from feather_edge.errors import RecipeError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Stage = Literal["export", "engines"]

_RecipeType = TypeVar("_RecipeType", bound=msgspec.Struct)


def recipe_folder(stage: Stage = "export") -> Path:
    """Return the folder that holds the named recipes of a stage.

    An installed wheel carries them inside the package; a checkout has them at its top level.
    """
    package = Path(__file__).parent.parent
    packaged = package / "_recipes" / stage
    return packaged if packaged.is_dir() else package.parent / stage / "recipes"


def recipe_names(stage: Stage = "export") -> tuple[str, ...]:
    """Return the names of the shipped recipes of a stage, sorted."""
    return tuple(sorted(path.stem for path in recipe_folder(stage).glob("*.toml")))


def load(name_or_file: str | Path, kind: type[_RecipeType], *, stage: Stage) -> _RecipeType:
    """Read the recipe of ``kind`` that a shipped name or a path stands for.

    Raises:
        RecipeError: if there is no such recipe, or it does not parse, or a key or a value in it
            is not allowed.
    """
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


def describe_recipe(recipe: msgspec.Struct) -> str:
    """Return a recipe as TOML, every key of it; a default without a TOML form as a comment."""
    values = msgspec.to_builtins(recipe)
    return "\n".join(
        f"# {key}: {_ABSENT[key]}" if value is None else f"{key} = {_toml(value)}"
        for key, value in values.items()
    )


_ABSENT = {
    "stages": "by the depth of the decoder",
    "vision_precision": "as precision, but int8 where that is int4",
    "head_precision": "float with a float precision, int8 with any other",
    "activations": "fp32, where weights are integers",
    "opset": "every form that can hold the precision",
    "lowest_cosine": "by precision",
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
