"""Record which names TensorRT's Python module has, version by version.

Usage: python tools/list_tensorrt_api.py [--check]

Downloads the bindings wheels (pip, no dependencies) into a temporary folder and imports each in a
process of its own. The bindings want NVIDIA's libraries, which are large and need a driver, so
empty libraries of the same names and symbols stand in for them: enough to import, not to run.
Writes feather_edge/engines/tensorrt_api/*.json; ``--check`` compares instead. Needs gcc and
binutils. Nothing that was downloaded is kept.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LISTINGS = Path(__file__).parent.parent / "feather_edge" / "engines" / "tensorrt_api"

WHEELS = (
    ("tensorrt-cu12-bindings", "10.3.0", "tensorrt_bindings"),  # JetPack 6.2
    ("tensorrt-cu12-bindings", "10.13.3.9", "tensorrt_bindings"),  # JetPack 7.0
    ("tensorrt-cu12-bindings", "10.15.1.29", "tensorrt_bindings"),  # first with caches in place
    ("tensorrt-cu12-bindings", "11.4.0.106", "tensorrt_bindings"),
    ("tensorrt-rtx-cu13-bindings", "1.7.1.116", "tensorrt_rtx_bindings"),
)
"""Package, version, and the module that its wheel brings."""

# Runs where the bindings are importable and nothing else is.
DUMP = """
import importlib, inspect, json, sys

def names(holder, prefix=""):
    found = []
    for name in dir(holder):
        value = getattr(holder, name, None)
        if name.startswith("_") or inspect.ismodule(value):
            continue
        found.append(prefix + name)
        if inspect.isclass(value) and (value.__module__ or "").startswith(sys.argv[1]):
            found += [prefix + name + "." + each for each in names(value)]
    return found

json.dump(names(importlib.import_module(sys.argv[1])), sys.stdout)
"""


def run(*command: str, **environment: str) -> str:
    """Run a command and return what it printed."""
    env = {**os.environ, **environment}
    return subprocess.run(  # noqa: S603 - our own commands
        command, check=True, capture_output=True, text=True, env=env
    ).stdout


def write_stand_ins(bindings: Path, folder: Path) -> None:
    """Write an empty library for each NVIDIA library that the bindings are linked with."""
    needed = re.findall(
        r"NEEDED.*\[(lib(?:nv|tensorrt)[^]]+)\]", run("readelf", "-d", str(bindings))
    )
    undefined = run("nm", "-D", "--undefined-only", str(bindings)).split()
    symbols = [name for name in undefined if re.fullmatch(r"(create|get|init)\w+", name)]
    source = folder / "stand_in.c"
    source.write_text("".join(f"void* {name}(void) {{ return 0; }}\n" for name in symbols))
    for name in needed:
        command = ("gcc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{name}", str(source), "-o")
        run(*command, str(folder / name))


def list_names(package: str, version: str, module: str) -> list[str]:
    """Return the dotted public names of one wheel's module, sorted."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:",
            "-d", temporary, f"{package}=={version}")  # fmt: skip
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        (bindings,) = (folder / module).glob("tensorrt*.so")
        write_stand_ins(bindings, folder)
        found = run(sys.executable, "-S", "-c", DUMP, module,
                    PYTHONPATH=temporary, LD_LIBRARY_PATH=temporary)  # fmt: skip
        return sorted(set(json.loads(found)))


def listing(package: str, version: str, names: list[str]) -> str:
    """Return the text of a listing: members grouped by the class that has them."""
    groups: dict[str, list[str]] = {}
    for name in names:
        first, _, rest = name.partition(".")
        members = groups.setdefault(first, [])
        if rest:
            members.append(rest)
    lines = [f'"{name}": {json.dumps(members)}' for name, members in sorted(groups.items())]
    head = f'"package": "{package}",\n"version": "{version}",\n"names": '
    return "{\n" + head + "{\n" + ",\n".join(lines) + "\n}\n}\n"


def main() -> int:
    """Write or check every listing; return the exit status."""
    stale = []
    for package, version, module in WHEELS:
        text = listing(package, version, list_names(package, version, module))
        target = LISTINGS / f"{module.removesuffix('_bindings')}-{version}.json"
        if "--check" not in sys.argv:
            target.write_text(text, encoding="utf-8")
            print(f"{target.name}: {len(text) // 1024} KiB")
        elif target.read_text(encoding="utf-8") != text:
            stale.append(target.name)
    if stale:
        print(f"stale: {', '.join(stale)}; run python tools/list_tensorrt_api.py", file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
