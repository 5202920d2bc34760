"""Write docs/cli.md from the commands' own help; ``--check`` compares instead.

Usage: python tools/write_cli_reference.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from feather_edge.cli import COMMANDS, main

REFERENCE = Path(__file__).parent.parent / "docs" / "cli.md"
WIDTH = 100

HEADER = """\
# Command reference

Written by `make docs` from the commands' own `--help`; change the command, not this file.

Results go to standard output, progress and messages to standard error. Exit status 0: done;
1: an expected failure, told in one line; 2: wrong usage.
"""


def reference() -> str:
    """Return the text of docs/cli.md."""
    group = _context(main, name="feather-edge", parent=None)
    parts = [HEADER, _section("feather-edge", main.get_help(group))]
    for name in COMMANDS:
        if command := main.get_command(group, name):
            context = _context(command, name=name, parent=group)
            parts.append(_section(f"feather-edge {name}", command.get_help(context)))
    return "\n".join(parts)


def _context(command: click.Command, *, name: str, parent: click.Context | None) -> click.Context:
    """Return a context of fixed width, so that the terminal does not show in the text."""
    settings = command.context_settings if parent is None else {}
    settings = {**settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    return click.Context(command, info_name=name, parent=parent, **settings)


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n```\n{text.rstrip()}\n```\n"


def run(arguments: list[str]) -> str | None:
    """Write the file, or compare it; return what is wrong."""
    text = reference()
    if "--check" not in arguments:
        REFERENCE.write_text(text, encoding="utf-8")
    elif not REFERENCE.is_file() or REFERENCE.read_text(encoding="utf-8") != text:
        return "docs/cli.md is stale; run: make docs"
    return None


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
