"""Public is what ``__all__`` says."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re

import pytest

import feather_edge
from feather_edge import errors, recipes

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(feather_edge.__path__, "feather_edge.")
    if not module.name.endswith("__main__")
)


def test_every_public_name_loads() -> None:
    for name in feather_edge.__all__:
        assert getattr(feather_edge, name) is not None


def test_dir_is_the_public_list() -> None:
    assert dir(feather_edge) == sorted(feather_edge.__all__)


def test_public_names_are_the_promised_ones() -> None:
    assert set(feather_edge.__all__) == {
        "Bundle", "FakeBackend", "Pruning", "Region", "Sampling", "Session", "__version__",
        "errors",
    }  # fmt: skip


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'feather_edge' has no attribute 'Sesion'"):
        feather_edge.Sesion  # noqa: B018


def test_all_lists_what_a_module_defines() -> None:
    wrong = {name: found for name in MODULES if (found := faults_of_all(name))}
    assert not wrong


def faults_of_all(name: str) -> list[str]:
    """Return what is wrong with the ``__all__`` of a module; one without has no faults."""
    module = importlib.import_module(name)
    listed = getattr(module, "__all__", None)
    if listed is None:
        return []
    own = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == name
    }
    faults = [f"{each} is listed but not there" for each in listed if not hasattr(module, each)]
    faults += [f"{each} is not listed; list it or start it with _" for each in own - set(listed)]
    return faults


def test_a_wrong_list_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "__all__", ["RecipeError", "BundleError", "Gone"])
    faults = faults_of_all("feather_edge.errors")
    assert "Gone is listed but not there" in faults
    assert "ParityError is not listed; list it or start it with _" in faults


def test_error_tree_is_drawn_as_it_is() -> None:
    drawn = {}
    path: list[str] = []
    for indent, name in re.findall(r"^( {4,})(\w+Error)\b", errors.__doc__ or "", re.MULTILINE):
        depth = len(indent) // 2 - 2
        path[depth:] = [name]
        drawn[name] = path[depth - 1] if depth else "Exception"
    actual = {name: getattr(errors, name).__base__.__name__ for name in errors.__all__}
    assert drawn == actual


def test_all_errors_are_public() -> None:
    classes = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert classes == set(errors.__all__)


def test_recipes_and_pruning_use_the_same_words() -> None:
    from typing import get_args

    from feather_edge import pruning

    assert set(get_args(recipes.CriterionName)) == set(pruning.CRITERION_NAMES)
    assert set(get_args(recipes.SelectionName)) == set(get_args(pruning.Selection))
    assert set(get_args(recipes.PreCriterionName)) == set(pruning.PRE_CRITERION_NAMES)
