"""JSON files: one way to write a record, and one to read what nobody vouches for.

What the standard reader lets pass is an error here: repeated keys, numbers that are not finite or
too large to count anything, documents that are too large or nested too deep. Messages are one line
and say what is wrong, not where to look next; callers add the file and the way out.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from feather_edge.errors import FeatherEdgeError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["StrictJSONError", "dumps", "loads", "read_record"]

Record = TypeVar("Record", bound=msgspec.Struct)

MAX_INTEGER = 2**53
"""Beyond it a JSON number is not exact everywhere."""


class StrictJSONError(ValueError):
    """The document is not acceptable JSON."""


def read_record(
    path: Path, kind: type[Record], *, max_bytes: int, format_version: int | None = None
) -> Record:
    """Return the record in a file.

    Args:
        path: of the file.
        kind: of the record.
        max_bytes: that are read.
        format_version: that the record's key of this name must have; None where it has no such
            key. It is looked at first: what a later version adds is no unknown key.

    Raises:
        StrictJSONError: if the file cannot be read, or holds no such record.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise StrictJSONError(f"it has {size} bytes; at most {max_bytes} are read")
        document = loads(path.read_bytes())
    except OSError as error:
        raise StrictJSONError(f"it cannot be read: {error.strerror or error}") from error
    if format_version is not None:
        found = document.get("format_version") if isinstance(document, dict) else None
        if type(found) is not int or found != format_version:
            raise StrictJSONError(
                f"it has format version {found!r}; this feather-edge reads version "
                f"{format_version}"
            )
    try:
        return msgspec.convert(document, kind)
    except (msgspec.ValidationError, FeatherEdgeError) as error:
        raise StrictJSONError(str(error)) from error


def dumps(record: msgspec.Struct) -> bytes:
    """Return a record as people like to read it: indented, with a newline at the end."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def loads(data: bytes) -> Any:
    """Return a document.

    Raises:
        StrictJSONError: if it is no JSON, or no strict one; see the module.
    """
    try:
        text = data.decode("utf-8")
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_integer,
        )
    except UnicodeDecodeError as error:
        raise StrictJSONError(f"it is not UTF-8: {error}") from error
    except json.JSONDecodeError as error:
        raise StrictJSONError(f"it is no JSON: {error}") from error
    except RecursionError as error:
        raise StrictJSONError("it is nested too deep") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise StrictJSONError(f"key {repeated!r} stands twice in one object")
    return found


def _constant(name: str) -> Any:
    raise StrictJSONError(f"it holds {name}; numbers must be finite")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise StrictJSONError(f"it holds {digits[:40]}; numbers must be finite")
    return value


def _integer(digits: str) -> int:
    if len(digits) > len(str(MAX_INTEGER)) + 1 or abs(int(digits)) > MAX_INTEGER:
        raise StrictJSONError(f"it holds {digits[:40]}; integers must be at most 2^53")
    return int(digits)
