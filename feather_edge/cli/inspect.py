"""``feather-edge inspect``: what a bundle holds."""

from __future__ import annotations

from pathlib import Path

import click

from feather_edge.cli._options import emit_json, json_option


@click.command(epilog="\b\nExample:\n  feather-edge inspect bundle --json")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--prompt-tokens",
    type=click.IntRange(min=1),
    show_default="one image and a short question",
    help="Text tokens beside the visual ones, for the counts and FLOPs of a prefill.",
)
@json_option
def command(*, bundle: Path, prompt_tokens: int | None, as_json: bool) -> None:
    """Show what a bundle holds and what a prefill costs.

    Reads BUNDLE, a folder that `feather-edge export` wrote, and runs nothing of it.
    """
    from feather_edge.bundle import Bundle
    from feather_edge.inspection import describe

    report = describe(Bundle.open(bundle), prompt_tokens=prompt_tokens)
    if as_json:
        emit_json(report)
