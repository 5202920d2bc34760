"""Which names of TensorRT's Python module a source uses, and which versions have them."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import feather_edge

if TYPE_CHECKING:
    from collections.abc import Mapping

LISTINGS = Path(feather_edge.__file__).parent / "engines" / "tensorrt_api"
MODULES = ("tensorrt", "tensorrt_rtx")

Version = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The TensorRT versions that have a name: ``since`` (with it) and ``until`` (without it)."""

    since: Version = (0,)
    until: Version = (10**6,)

    def admits(self, version: Version) -> bool:
        return self.since <= version < self.until


def names_used(source: str) -> set[str]:
    """Return what a source asks of ``trt``: ``trt.X.Y`` and ``getattr(trt.X, "Y")`` give ``X.Y``.

    ``trt``, and whatever name TensorRT is imported by, stands for the module. A ``getattr`` with
    a default and a ``hasattr`` are gates of their own, and ask for nothing.
    """
    tree = ast.parse(source)
    aliases = {"trt"} | {
        each.asname or each.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for each in node.names
        if each.name in MODULES
    }
    imported = {
        each.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in MODULES
        for each in node.names
    }
    chains = {_chain(node, aliases) for node in ast.walk(tree)}
    # The listings leave out what every module has, such as __version__.
    found = imported | {chain for chain in chains if chain and not chain.startswith("__")}
    # trt.X.Y holds trt.X: only the longest chain says what is used.
    return {name for name in found if not any(each.startswith(f"{name}.") for each in found)}


def _chain(node: ast.AST, aliases: set[str]) -> str | None:
    """Return the dotted name below the module, "" for the module itself, None for others."""
    if isinstance(node, ast.Name):
        return "" if node.id in aliases else None
    if isinstance(node, ast.Attribute):
        holder, name = _chain(node.value, aliases), node.attr
    elif (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "getattr"
        and len(node.args) == 2
        and isinstance(node.args[1], ast.Constant)
    ):
        holder, name = _chain(node.args[0], aliases), str(node.args[1].value)
    else:
        return None
    return None if holder is None else f"{holder}.{name}".lstrip(".")


def parse_version(text: str) -> Version:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def listings(module: str = "tensorrt") -> dict[str, frozenset[str]]:
    """Return version -> the dotted names that it has, as recorded for one module."""
    found = {}
    for path in sorted(LISTINGS.glob(f"{module}-*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        groups: dict[str, list[str]] = document["names"]
        dotted = {f"{first}.{rest}" for first, members in groups.items() for rest in members}
        found[document["version"]] = frozenset({*groups, *dotted})
    return found


def wrong_names(
    source: str, gates: Mapping[str, Gate] | None = None, *, module: str = "tensorrt"
) -> list[str]:
    """Return what is wrong with the names that a source uses, one sentence each.

    A name without a gate must be in every listing. A name with a gate must be in exactly the
    versions that the gate admits, so a gate that has become wrong is found too.
    """
    problems = []
    for name in sorted(names_used(source)):
        gate = (gates or {}).get(name, Gate())
        for version, names in listings(module).items():
            admitted = gate.admits(parse_version(version))
            if admitted and name not in names:
                problems.append(f"{module} {version} has no {name}; declare a Gate for it")
            elif not admitted and name in names:
                problems.append(f"{module} {version} has {name}, and its Gate says otherwise")
    return problems
