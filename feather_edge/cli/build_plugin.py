"""``feather-edge build-plugin``: the TensorRT plugin, compiled on the device."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from feather_edge.cli._options import emit_json, json_option
from feather_edge.cli._parsers import parse_arch


@click.command(epilog="\b\nExample:\n  feather-edge build-plugin --arch 87")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("engines/out"),
    help="Folder of the library.",
)
@click.option(
    "--arch",
    callback=parse_arch,
    metavar="N[,N...]",
    show_default="those of 87, 110 and 121 that nvcc knows",
    help="Compute capabilities to compile for: 87 is Orin, 110 Thor, 121 Spark.",
)
@click.option(
    "--tensorrt-include",
    type=click.Path(path_type=Path),
    show_default="looked for where apt and NVIDIA's archives put it",
    help="Folder of NvInferRuntime.h.",
)
@click.option(
    "--nvcc",
    type=click.Path(path_type=Path),
    show_default="looked for on PATH and below /usr/local/cuda",
    help="CUDA compiler.",
)
@click.option("--dry-run", is_flag=True, help="Print the command; compile nothing.")
@json_option
def command(
    *,
    output: Path,
    arch: tuple[int, ...] | None,
    tensorrt_include: Path | None,
    nvcc: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Compile the TensorRT plugin that selects tokens.

    Reads the source in the package and the installed TensorRT headers. Writes
    libfeather_edge_plugin.so. Engines also build without it, from standard operators.
    """
    from feather_edge.engines.plugin_build import build_plugin, plan_plugin

    act = plan_plugin if dry_run else build_plugin
    result = act(output, arch=arch, tensorrt_include=tensorrt_include, nvcc=nvcc)
    if as_json:
        emit_json(result.record())
    else:
        click.echo(shlex.join(result.command) if dry_run else str(result.library))
