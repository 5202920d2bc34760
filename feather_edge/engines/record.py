"""When an engine is up to date, and how it and its record come into place together."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from feather_edge import strict_json
from feather_edge.engine_record import EngineRecord

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["RECORD_VERSION", "file_hash", "is_up_to_date", "publish"]

RECORD_VERSION = 1
MEASURED = ("build_s", "peak_rss_mib", "num_bytes")
"""Fields that differ from one build to the next and say nothing about what was built."""


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a small file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_up_to_date(engine: Path, wanted: EngineRecord) -> bool:
    """Return whether an engine is there and is what a build would make again."""
    try:
        found = msgspec.json.decode(engine.with_suffix(".json").read_bytes(), type=EngineRecord)
        size = engine.stat().st_size
    except (OSError, msgspec.MsgspecError):
        return False
    return found.num_bytes == size and not _differences(found, wanted, skip=MEASURED)


def publish(partial: Path, engine: Path, record: EngineRecord) -> None:
    """Put an engine and its record in place; at no time does a record describe another engine."""
    file = engine.with_suffix(".json")
    staged = partial.with_suffix(".record")
    staged.write_bytes(strict_json.dumps(record))
    file.unlink(missing_ok=True)
    partial.replace(engine)
    staged.replace(file)


def _differences(found: EngineRecord, wanted: EngineRecord, *, skip: tuple[str, ...]) -> list[str]:
    names = [name for name in EngineRecord.__struct_fields__ if name not in skip]
    return [name for name in names if getattr(found, name) != getattr(wanted, name)]
