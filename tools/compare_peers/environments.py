"""Virtual environments of the peers: pinned packages, made once."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tarfile
import venv
from dataclasses import asdict
from typing import TYPE_CHECKING

from compare_peers.runner import PeerError

if TYPE_CHECKING:
    from pathlib import Path

    from compare_peers.contenders import Environment

MARK = "compare_peers.json"
"""Written last; holds what was asked for."""


def make(environment: Environment, root: Path) -> Path:
    """Make an environment below ``root``, unless it is there, and return its interpreter.

    Raises:
        PeerError: if a package cannot be installed.
    """
    folder = root / environment.name
    python = _python(folder)
    if _is_made(environment, folder):
        return python
    print(f"environment {environment.name}: {', '.join(environment.packages)}", flush=True)
    if folder.exists():
        shutil.rmtree(folder)
    # The pip that runs here installs there, if there is one: unpacking another takes time.
    has_pip = importlib.util.find_spec("pip") is not None
    venv.create(folder, with_pip=not has_pip)
    log = root / f"{environment.name}.log"
    install = ("install", "--no-compile")  # most of what torch brings is never imported
    _pip(python, log, *install, *environment.packages)
    if environment.bare:
        _pip(python, log, *install, "--no-deps", *environment.bare)
    for source in environment.sources:
        _unpack(python, log, source, folder / "sources")
    (folder / MARK).write_text(_wanted(environment))
    return python


def interpreter(environment: Environment, root: Path) -> Path:
    """Return the interpreter of an environment that was made.

    Raises:
        PeerError: if it was not.
    """
    folder = root / environment.name
    if not _is_made(environment, folder):
        raise PeerError(f"its environment is not made; see {root / environment.name}.log")
    return _python(folder)


def versions(folder: Path) -> list[str]:
    """Return what is installed in an environment, as ``name==version``."""
    return sorted(
        "==".join(file.name.removesuffix(".dist-info").rsplit("-", 1))
        for file in folder.glob("lib/python*/site-packages/*.dist-info")
    )


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _wanted(environment: Environment) -> str:
    return json.dumps(asdict(environment), indent=2)


def _is_made(environment: Environment, folder: Path) -> bool:
    mark = folder / MARK
    return mark.exists() and mark.read_text() == _wanted(environment)


def _unpack(python: Path, log: Path, source: str, folder: Path) -> None:
    name = source.partition("==")[0]
    _pip(python, log, "download", "--no-deps", "--no-binary", name, source, "--dest", str(folder))
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    archive.unlink()


def _pip(python: Path, log: Path, *arguments: str) -> None:
    program = [str(python), "-m", "pip"]
    if importlib.util.find_spec("pip") is not None:
        program = [sys.executable, "-m", "pip", "--python", str(python)]
    with log.open("a") as output:
        done = subprocess.run(  # noqa: S603
            [*program, *arguments], check=False, stdout=output, stderr=subprocess.STDOUT
        )
    if done.returncode:
        raise PeerError(f"pip {arguments[0]} failed in {python}; see {log}")
