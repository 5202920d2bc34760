"""What somebody asked for by name, laid over defaults: nothing asked for is without effect.

A recipe carries every option, so that a request may change the criterion alone; ``Pruning`` cannot
tell such a value from one that was asked for. Here the two come apart.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from feather_edge.errors import RequestError
from feather_edge.pruning.criteria import CRITERIA

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from feather_edge.pruning.request import Pruning


def override(pruning: Pruning, **asked: Any) -> Pruning:
    """Return ``pruning`` with the fields that were asked for in place of its own.

    Raises:
        RequestError: if a value is out of range, or would have no effect beside the others.
    """
    return override_each([pruning], **asked)[0]


def override_each(prunings: Sequence[Pruning], **asked: Any) -> list[Pruning]:
    """Return each of ``prunings`` with the fields asked for; one of them must heed every field.

    Raises:
        RequestError: if a value is out of range, or would have no effect on any of them.
    """
    effective = [dataclasses.replace(pruning, **asked) for pruning in prunings]
    reasons = [dict(_in_vain(pruning)) for pruning in effective]
    for name, value in asked.items():
        if all(name in each for each in reasons):
            label = name.replace("_", "-")
            raise RequestError(f"{label} {_text(value)} has no effect: {reasons[0][name]}")
    return effective


def _in_vain(pruning: Pruning) -> Iterator[tuple[str, str]]:
    """Yield the fields whose value changes nothing of this request, and what would help."""
    name = pruning.criterion
    if name != "none" and name not in CRITERIA:
        return  # the session says which there are
    heeded = frozenset[str]() if name == "none" else CRITERIA[name].options
    if name == "none" and min(pruning.keep_ratio) < 1:
        yield "keep_ratio", "criterion none keeps every token; choose another, or leave it out"
    if pruning.stride > 0 and "stride" not in heeded:
        yield "stride", f"criterion {name} has no grid; {_heeding('stride')}, or leave it out"
    if pruning.selection == "union" and "selection" not in heeded:
        remedy = f"{_heeding('selection')}, or leave it out"
        yield "selection", f"criterion {name} prefers no tokens that could join the best; {remedy}"
    elif pruning.selection == "union" and "stride" in heeded and pruning.stride == 0:
        yield (
            "selection",
            "stride 0 is no grid that could join the best; give one, or leave it out",
        )
    if pruning.pre_criterion == "none":
        remedy = "choose what does with --pre-prune (pre_criterion), or leave it out"
        yield "pre_keep_ratio", f"nothing prunes before the decoder; {remedy}"


def _heeding(option: str) -> str:
    names = [name for name, each in CRITERIA.items() if option in each.options]
    return f"choose {' or '.join(names)}"


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{each:g}" for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
