"""The report for people: two tables and the lines around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from feather_edge.bench.floor import GraphFloor, RequestFloor
    from feather_edge.bench.report import Report
    from feather_edge.bench.summary import Summary

    OfSummary = Callable[[Summary], float | None]
    OfFloor = Callable[[RequestFloor], float | None]

__all__ = ["COLUMNS", "FLOOR_COLUMNS", "floor_rows", "headline", "table_rows", "verdict"]

FLOOR_COLUMNS = ("graph", "rows", "GFLOPs", "weights MiB", "GFLOPs/s here", "roof ms")
COLUMNS = ("", "unpruned", "roof", "pruned", "roof", "ratio", "90 % of pairs")
MIB = 2**20

Row = tuple[str | float, ...]


def headline(report: Report) -> str:
    """Return the conditions."""
    here, settings, session = report.environment, report.settings, report.session
    runtime = here.runtimes.get(here.backend) or here.runtimes.get(f"{here.backend}-gpu", "")
    threads = "" if here.num_threads is None else f", {here.num_threads} threads"
    device = session.peak_device_mib
    on_device = "" if device is None else f", {device:.0f} MiB on the device"
    return (
        f"{here.bundle}: {here.model_type} from {here.source}, {here.recipe.precision}\n"
        f"{here.machine}, {here.num_cores} cores{threads}, load {here.load_average:.2f}; "
        f"{here.backend} {runtime}, {here.device}\n"
        f"{settings.repeat} rounds after {settings.warmup} to warm up; opened in "
        f"{session.load_ms:.0f} ms, peak memory {session.peak_rss_mib:.0f} MiB{on_device}; "
        f"energy: {', '.join(here.energy_sensors) or 'no sensor'}\n"
    )


def floor_rows(report: Report) -> list[Row]:
    """Return what every graph costs at least; segments with fewer rows follow."""
    unpruned, pruned = report.floor.unpruned, report.floor.pruned
    rows = [_floor_row(graph) for graph in (unpruned.vision, *unpruned.segments)]
    if pruned is not None:
        rows += [
            _floor_row(fewer, note=", pruned")
            for all_rows, fewer in zip(unpruned.segments, pruned.segments, strict=True)
            if fewer.num_rows != all_rows.num_rows
        ]
    return rows


def table_rows(report: Report) -> list[Row]:
    """Return one row per time in milliseconds, then speeds and energy."""

    def row(
        label: str, of: OfSummary, roof: OfFloor | None = None, pairs: str | None = None
    ) -> Row:
        before, after = of(report.unpruned), None if report.pruned is None else of(report.pruned)
        roofs = [
            None if roof is None or floor is None else roof(floor)
            for floor in (report.floor.unpruned, report.floor.pruned)
        ]
        ratio = after / before if after is not None and before else None
        return (
            label, _cell(before), _cell(roofs[0]), _cell(after), _cell(roofs[1]), _cell(ratio),
            _spread(report, pairs),
        )  # fmt: skip

    def segment_row(index: int, graph: str) -> Row:
        return row(
            f"{graph} ms",
            lambda summary: summary.segment_ms[index],
            lambda floor: floor.segments[index].roof_ms,
        )

    rows = [
        row("preprocess ms", lambda s: s.preprocess_ms),
        row("vision ms", lambda s: s.vision_ms, lambda f: f.vision.roof_ms),
        *(segment_row(i, each.graph) for i, each in enumerate(report.floor.unpruned.segments)),
        row("prune, host's part ms", lambda s: s.prune_ms),
        row("prefill ms", lambda s: s.prefill_ms, lambda f: f.prefill_roof_ms, "prefill"),
        row("first token (TTFT) ms", lambda s: s.ttft_ms, lambda f: f.ttft_roof_ms, "ttft"),
        row("further token (TPOT) ms", lambda s: s.tpot_ms, lambda f: f.tpot_roof_ms, "tpot"),
        row("token gap (ITL) p50 ms", lambda s: s.itl_p50_ms),
        row("token gap (ITL) p95 ms", lambda s: s.itl_p95_ms),
        row("prefill tokens/s, kept", lambda s: s.prefill_tokens_per_s),
        row("prefill tokens/s, original", lambda s: s.prefill_original_tokens_per_s),
        row("decode tokens/s", lambda s: s.decode_tokens_per_s),
    ]
    if report.environment.energy_sensors:
        rows.append(row("energy per answer J", lambda s: s.energy_j, None, "energy"))
    return rows


def verdict(report: Report) -> str:
    """Return the KV cache, and what pruning should have saved beside what it did."""
    floor, ratio = report.floor, report.ratio
    kept = "" if floor.pruned is None else f", {floor.pruned.kv_bytes / MIB:.1f} MiB pruned"
    cache_mib = floor.unpruned.kv_bytes / MIB
    per_token = floor.kv_bytes_per_token
    lines = [f"KV cache: {per_token} bytes per token, {cache_mib:.1f} MiB after the prefill{kept}"]
    if floor.copy_gbytes_per_s is not None:
        lines.append(f"memory: {floor.copy_gbytes_per_s:.1f} GB/s read and written by copying")
    lines += [f"note: {note}" for note in report.session.notes]
    if ratio is None or report.pruned is None:
        lines.append(f"nothing was pruned, since {report.reason}")
    else:
        counts = " > ".join(map(str, report.pruned.num_visual_tokens))
        lines.append(
            f"visual tokens of the segments {counts}: prefill takes {ratio.prefill:.2f} of its "
            f"unpruned time, for {ratio.flops:.2f} of its operations"
        )
    return "\n".join(lines)


def _floor_row(graph: GraphFloor, note: str = "") -> Row:
    flops = None if graph.flops is None else graph.flops / 1e9
    return (
        f"{graph.graph}{note}", _cell(graph.num_rows), _cell(flops),
        graph.weight_bytes / MIB, _cell(graph.gflops_per_s), _cell(graph.roof_ms),
    )  # fmt: skip


def _spread(report: Report, pairs: str | None) -> str:
    if pairs is None or report.ratio is None or pairs not in report.ratio.pairs:
        return ""
    pair = report.ratio.pairs[pairs]
    return f"{pair.p5:.2f} to {pair.p95:.2f}"


def _cell(value: float | None) -> float | str:
    """Return a number to show; above 100, nobody reads its decimals."""
    if value is None:
        return "-"
    return round(value) if value >= 100 else value
