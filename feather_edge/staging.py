"""How a bundle comes into being: beside its destination, and then by one rename.

::

    .<bundle>.partial-<process>   what a killed writer leaves; the next one removes it
    .<bundle>.old-<process>       an earlier bundle between two renames; comes back likewise
    .<bundle>.unfinished          what ``deploy`` has done so far; it goes on there
    .<bundle>.lock                held by whoever writes; see ``feather_edge.locking``
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from feather_edge.errors import BundleError
from feather_edge.locking import exclusive
from feather_edge.manifest import MANIFEST_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Unfinished", "staging_folder", "unfinished_bundle", "write_whole"]


@contextlib.contextmanager
def staging_folder(destination: Path, *, force: bool) -> Iterator[Path]:
    """Give an empty folder that becomes ``destination`` when the block ends without an error.

    Raises:
        BundleError: if ``destination`` exists and ``force`` is off, or it exists and is not a
            bundle: a folder of something else is never replaced; or another process writes it.
    """
    _check_replaceable(destination, force=force)
    with exclusive(destination):
        _check_replaceable(destination, force=force)
        staging = _beside(destination, f"partial-{os.getpid()}")
        try:
            staging.mkdir(parents=True)
            yield staging
            _replace(staging, destination)
        except OSError as error:
            raise BundleError(f"cannot write {destination}: {_cause(error)}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A bundle in the making, which outlives its process, and the one that it is to replace."""

    destination: Path
    staging: Path

    @classmethod
    def of(cls, destination: Path) -> Unfinished:
        """Return what is in the making for ``destination``, to be looked at."""
        return cls(destination=destination, staging=_beside(destination, "unfinished"))

    @property
    def is_begun(self) -> bool:
        """Whether something was done that is not at the destination yet."""
        return self.staging.exists()

    @property
    def folder(self) -> Path:
        """Where the bundle is now; it need not exist."""
        return self.staging if self.is_begun else self.destination

    @property
    def remark(self) -> str:
        """What to add to an error, so that it tells the way on; empty where nothing was done."""
        return f"; {self.staging} has what was done, go on with the same command" * self.is_begun

    def begin(self) -> Path:
        """Return the folder to change: a copy of the bundle at the destination, if there is one.

        Files are shared with that bundle, so writers replace files and never change them.
        """
        if not self.is_begun and self.destination.exists():
            partial = _beside(self.destination, f"partial-{os.getpid()}")
            shutil.copytree(self.destination, partial, copy_function=_link, symlinks=True)
            partial.rename(self.staging)
        return self.staging

    def publish(self) -> None:
        """Put what was done in place of the bundle at the destination."""
        if self.is_begun:
            _replace(self.staging, self.destination)


@contextlib.contextmanager
def unfinished_bundle(destination: Path) -> Iterator[Unfinished]:
    """Give the bundle that an interrupted block left unfinished, or none yet.

    What stands at ``destination`` stays as it is until ``Unfinished.publish``.

    Raises:
        BundleError: if another process writes ``destination``, or it is not a bundle, or something
            cannot be written.
    """
    if _is_something_else(destination):
        raise BundleError(f"{destination} exists and is not a bundle; choose another output")
    unfinished = Unfinished.of(destination)
    with exclusive(destination), exclusive(unfinished.staging):
        try:
            yield unfinished
        except OSError as error:
            raise BundleError(
                f"cannot write {destination}: {_cause(error)}{unfinished.remark}"
            ) from error


def write_whole(file: Path, data: bytes) -> None:
    """Write a file so that it has all of ``data`` or is as it was, whatever happens meanwhile."""
    partial = file.with_name(f".{file.name}.partial")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.write_bytes(data)
        partial.replace(file)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _cause(error: OSError) -> str:
    """Return why something could not be written, in the system's words where it has any."""
    if error.errno is None:  # numpy's, of a file that took a part of an array
        return f"no space left, or a quota is reached ({error})"
    return error.strerror or str(error)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _beside(destination: Path, suffix: str) -> Path:
    return destination.parent / f".{destination.name}.{suffix}"


def _check_replaceable(destination: Path, *, force: bool) -> None:
    if not destination.exists():
        return
    if not force:
        raise BundleError(f"{destination} already exists; overwrite it with --force")
    if _is_something_else(destination):
        raise BundleError(
            f"{destination} exists and is not a bundle, so --force will not replace it; "
            f"choose another output"
        )


def _is_something_else(destination: Path) -> bool:
    """Return whether something exists that is neither a bundle nor an empty folder."""
    is_empty = destination.is_dir() and not any(destination.iterdir())
    is_bundle = (destination / MANIFEST_FILE).is_file()
    return destination.exists() and not is_empty and not is_bundle


def _replace(staging: Path, destination: Path) -> None:
    """Move ``staging`` to ``destination``; the old bundle is set aside first, deleted last."""
    if not destination.exists():
        staging.rename(destination)
        return
    old = _beside(destination, f"old-{os.getpid()}")
    destination.rename(old)
    try:
        staging.rename(destination)
    except OSError:
        old.rename(destination)
        raise
    shutil.rmtree(old, ignore_errors=True)
