"""Checks that both kinds of recipe need, with the key in the message."""

from __future__ import annotations

import re

from feather_edge.errors import RecipeError


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is none of `allowed`."""
    if value not in allowed:
        raise RecipeError(f"{name} is {value!r}; choose {', '.join(allowed)}")


def check_form(name: str, value: str, pattern: str, example: str) -> None:
    """Refuse a value that does not match `pattern` as a whole."""
    if not re.fullmatch(pattern, value):
        raise RecipeError(f"{name} holds {value!r}, which is not of the form {example}")


def check_keep_ratio(
    name: str, keep_ratio: tuple[float, ...], stages: tuple[int, ...] | None
) -> None:
    """Refuse shares of the visual tokens that are out of range, grow, or miss a stage."""
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
