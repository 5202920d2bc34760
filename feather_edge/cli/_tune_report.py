"""What ``tune`` prints for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from feather_edge.cli._tables import print_table

if TYPE_CHECKING:
    from feather_edge.tune import Search, TuneReport

__all__ = ["print_report"]


def print_report(report: TuneReport) -> None:
    """Print the search, the ladder, and what they lead to."""
    if report.search is not None:
        _print_search(report.search)
    if report.backends is not None:
        click.echo(f"backend auto is {report.backends.best} here, by {report.backends.reason}\n")
    calibration = report.calibration
    here = calibration.fingerprint
    print_table(
        f"{report.bundle}: {report.method} with {here.backend} on {here.device}, {here.machine}",
        ("keep ratio", "tokens", "first token ms", "95 % within ms"),
        [
            (
                f"{rung.keep_ratio:g}",
                ">".join(map(str, rung.num_visual_tokens)),
                rung.ttft_ms,
                rung.ttft_p95_ms,
            )
            for rung in calibration.rungs
        ],
    )
    if report.budget is not None:
        click.echo(report.budget["reason"])
    click.echo(f"{report.calibration_file}: for feather-edge run {report.bundle} --deadline-ms MS")


def _print_search(search: Search) -> None:
    num_chosen, num_held_out = search.num_samples
    print_table(
        f"{search.task}: {num_chosen} samples for the choice, cheapest first",
        ("stages", "method", "keep ratio", "FLOPs", "saved of visual", "kept", "enough"),
        [
            (
                ",".join(map(str, each.stages)) or "none",
                each.method,
                f"{each.keep_ratio:g}",
                f"{each.flops_ratio:.2f}",
                f"{each.visual_flops_saved:.0%}",
                _shares(each.kept),
                "yes" if each.is_accepted else "",
            )
            for each in search.candidates
        ],
    )
    chosen, stages = search.chosen, ", ".join(map(str, search.chosen.stages)) or "no layers"
    click.echo(
        f"chosen: {chosen.method} at {chosen.keep_ratio:g} before layers {stages}, which saves "
        f"{chosen.visual_flops_saved:.0%} of the FLOPs of visual tokens. On {num_held_out} "
        f"samples that served no choice it keeps {_shares(search.kept)}.\n"
    )


def _shares(kept: dict[str, float]) -> str:
    return ", ".join(f"{kind} {share:.1%}" for kind, share in kept.items())
