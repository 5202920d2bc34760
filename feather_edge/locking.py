"""One writer at a time: a lock on a bundle that ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from typing import TYPE_CHECKING

from feather_edge.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["exclusive"]

HALF_WRITTEN = (".partial", ".record", ".result", ".job")
"""Suffixes of the hidden files that writers have in a bundle while they write."""

_HELD: set[Path] = set()
"""Bundles whose lock this process holds; a chain of stages takes it once for all of them."""


@contextlib.contextmanager
def exclusive(bundle: Path) -> Iterator[None]:
    """Hold the lock of a bundle, which need not exist yet; clean up after writers that died.

    The lock is the kernel's: a process that is killed no longer holds it. Its file, beside the
    bundle, means nothing by itself.

    Raises:
        BundleError: if another process holds it, or the folder cannot be written.
    """
    path = bundle.absolute()
    if path in _HELD:
        yield
        return
    with _locked(path.parent / f".{path.name}.lock", bundle):
        _remove_abandoned(path)
        _HELD.add(path)
        try:
            yield
        finally:
            _HELD.discard(path)


@contextlib.contextmanager
def _locked(file: Path, bundle: Path) -> Iterator[None]:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(file)
    except BlockingIOError as error:
        raise BundleError(
            f"{bundle} is being written by another process, which holds {file}; wait for it to "
            f"end, or end it"
        ) from error
    except OSError as error:
        raise BundleError(f"cannot write {bundle}: {error.strerror or error}") from error
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # before the lock ends, so that nobody else's is removed
        os.close(descriptor)


def _acquire(file: Path) -> int:
    """Return a descriptor that holds the lock of ``file``, and of no file that was removed."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if file.exists() and file.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _remove_abandoned(bundle: Path) -> None:
    """Remove what killed writers of ``bundle`` left; while the lock is held, none is alive."""
    for old in bundle.parent.glob(f".{bundle.name}.old-*"):
        if bundle.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(bundle)  # killed between two renames: the earlier bundle is good
    for unfinished in bundle.parent.glob(f".{bundle.name}.partial-*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    for file in bundle.rglob(".*"):
        if file.suffix in HALF_WRITTEN:
            file.unlink()
