"""Values of a Hugging Face config, checked as they are read.

transformers leaves out of config.json whatever equals the default of the config class (the
text_config of llava-1.5-7b-hf names five values), so the defaults of each model_type are part of
the format; the modules that read a config table them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from feather_edge.errors import CheckpointError, UnsupportedModelError


@dataclass(frozen=True, slots=True)
class ConfigFields:
    """Values of one part of a config, with the class defaults of its model_type filled in.

    Attributes:
        subject: what messages call the part.
        values: as they are in the file.
        defaults: of the config class.
    """

    subject: str
    values: dict[str, Any]
    defaults: dict[str, Any]

    def get(self, name: str) -> Any:
        """Return a value as it is, None where there is none."""
        return self.values.get(name, self.defaults.get(name))

    def size(self, name: str, *, if_none: int | None = None) -> int:
        """Return an integer of at least 1.

        Raises:
            CheckpointError: if the value is none.
        """
        value = self.get(name)
        value = if_none if value is None else value
        if type(value) is not int or value < 1:
            raise self._wrong(name, value, "an integer of at least 1")
        return value

    def side(self, name: str) -> int:
        """Return one side of a square that may be written as a pair.

        Raises:
            CheckpointError: if the value is no size.
            UnsupportedModelError: if it is a pair and not square.
        """
        value = self.get(name)
        if isinstance(value, list) and len(value) == 2:
            if value[0] != value[1]:
                raise UnsupportedModelError(
                    f"{self.subject}: {name} {value} is not square; only squares are supported"
                )
            return ConfigFields(self.subject, {name: value[0]}, {}).size(name)
        return self.size(name)

    def positive(self, name: str) -> float:
        """Return a finite number above 0.

        Raises:
            CheckpointError: if the value is none.
        """
        value = self.get(name)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise self._wrong(name, value, "a number above 0")
        return float(value)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """Return ``count`` numbers; one number stands for as many of it.

        Raises:
            CheckpointError: if the value is something else.
        """
        value = self.get(name)
        values = value if isinstance(value, list | tuple) else [value] * count
        if len(values) != count or any(type(v) not in (int, float) for v in values):
            raise self._wrong(name, value, f"{count} numbers")
        return tuple(float(v) for v in values)

    def text(self, name: str) -> str:
        """Return a text.

        Raises:
            CheckpointError: if the value is none.
        """
        value = self.get(name)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a name")
        return value

    def _wrong(self, name: str, value: Any, allowed: str) -> CheckpointError:
        return CheckpointError(f"{self.subject}: {name} is {value!r}; it must be {allowed}")


def config_part(raw: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the object that config.json holds under ``key``; empty where there is none.

    Raises:
        CheckpointError: if it is something else.
    """
    part = raw.get(key)
    if part is None:
        return {}
    if not isinstance(part, dict):
        raise CheckpointError(f"config.json: {key} is {part!r}; it must be an object")
    return part


def check_model_type(subject: str, model_type: Any, supported: tuple[str, ...]) -> None:
    """Refuse a model_type that is none of ``supported``.

    Raises:
        UnsupportedModelError: naming those that are.
    """
    if model_type not in supported:
        raise UnsupportedModelError(
            f"{subject} has model_type {model_type!r}, which is not supported; "
            f"supported are {', '.join(supported)}"
        )
