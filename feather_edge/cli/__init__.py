"""The command line: a group that loads a command's module when the command is asked for.

Expected failures end with one line on stderr and status 1, wrong usage with status 2, Ctrl-C with
"Aborted!" and status 1. stdout is the result, stderr is progress.
"""

from __future__ import annotations

import errno
from importlib import import_module
from typing import Any

import click

from feather_edge import __version__
from feather_edge.errors import FeatherEdgeError

__all__ = ["COMMANDS", "main"]

COMMANDS = (
    "deploy", "fit", "export", "inspect", "build-engine", "build-plugin", "verify", "run",
    "visualise", "eval", "tune", "bench", "demo", "recipes", "families", "doctor",
)  # fmt: skip
HIDDEN_ALIASES = {"visualize": "visualise"}


class _LazyGroup(click.Group):
    """Finds command a-b as ``command`` in ``feather_edge.cli.a_b``, and maps errors."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which a newcomer meets them."""
        return list(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,
        cmd_name: str,
    ) -> click.Command | None:
        """Import the module of a command and return its ``command``."""
        cmd_name = HIDDEN_ALIASES.get(cmd_name, cmd_name)
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"feather_edge.cli.{cmd_name.replace('-', '_')}")
        command = module.command
        assert isinstance(command, click.Command)  # noqa: S101 - for the type checker
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an expected failure becomes one line and status 1."""
        try:
            return super().invoke(ctx)
        except FeatherEdgeError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # click ends quietly when the reader has gone
                raise
            raise click.ClickException(str(error)) from error


@click.group(
    cls=_LazyGroup,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "max_content_width": 100,
        "auto_envvar_prefix": "FEATHER_EDGE",
    },
    epilog="\b\nExample:\n  feather-edge demo",
)
@click.version_option(__version__, prog_name="feather-edge", message="%(prog)s %(version)s")
def main() -> None:
    """Export vision-language models, prune their visual tokens, and run them.

    Every option can also be set in the environment: --keep-ratio of `run` is
    FEATHER_EDGE_RUN_KEEP_RATIO.
    """
