"""``report.html``: a deployment on one page, with nothing that a browser would have to fetch."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jinja2
import msgspec

from feather_edge import __version__
from feather_edge.bench import table
from feather_edge.bench.plot import parts
from feather_edge.bench.report import Report
from feather_edge.bundle import Bundle
from feather_edge.deploy.figures import bar_chart, step_chart
from feather_edge.deploy.report import outcome
from feather_edge.deploy.state import PAGE_FILE, Picture, VerifyResult
from feather_edge.errors import BundleError, RequestError
from feather_edge.evaluate.parity_report import VerifyReport
from feather_edge.fit import FitReport
from feather_edge.inspection import prefill_report
from feather_edge.staging import write_whole

if TYPE_CHECKING:
    from feather_edge.deploy.report import DeployReport
    from feather_edge.deploy.state import StageName

__all__ = ["copy_page", "render", "write_page"]

TEMPLATE = "report.html.jinja"
MEASURED_IN: dict[str, StageName] = {"export": "export", "build": "build-engine", "run": "bench"}
"""Which stage of a deployment shows what a stage of ``fit`` takes."""

_Report = TypeVar("_Report")


def write_page(folder: Path, report: DeployReport) -> None:
    """Write the page into a bundle folder."""
    write_whole(folder / PAGE_FILE, render(folder, report).encode())


def copy_page(bundle: Path, page: Path) -> None:
    """Copy the page out of a bundle.

    Raises:
        RequestError: if it cannot be written there.
    """
    try:
        write_whole(page, (bundle / PAGE_FILE).read_bytes())
    except OSError as error:
        raise RequestError(
            f"report {page} cannot be written: {error.strerror or error}; it is in {bundle}"
        ) from error


def render(folder: Path, report: DeployReport) -> str:
    """Return the page of a report.

    Args:
        folder: of the bundle that the report is about.
        report: what ``deploy`` came to.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    bundle = Bundle.open(folder)
    stages = {stage.name: stage for stage in report.stages}
    bench = None if report.bench is None else _read("bench", report.bench, Report)
    verified = _read("verify", stages["verify"].result, VerifyResult)
    parity = _read("verify", verified.parity, list[VerifyReport])
    fit = _read("fit", report.fit, FitReport)
    return environment.get_template(TEMPLATE).render(
        version=__version__,
        report=report,
        outcome=outcome,
        manifest=bundle.manifest,
        stages=stages,
        num_bytes=sum(record.num_bytes for record in bundle.manifest.files.values()),
        schedule=_schedule(bundle),
        pictures=_pictures(bundle, verified.pictures),
        parity=parity,
        parity_line=_parity_line(parity),
        fit=fit,
        memory=_memory(fit, report),
        bench=bench,
        times=None if bench is None else _times(bench),
        conditions=_conditions(bundle, bench),
    )


def _read(name: StageName, document: object, kind: type[_Report]) -> _Report:
    """Return the report of a stage as it was before it was written down."""
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise BundleError(
            f"the record of {name} is of another feather-edge: {error}; do that stage again with "
            f"--from-stage {name}"
        ) from error


def _schedule(bundle: Bundle) -> dict[str, Any]:
    """Return how visual tokens fall along the layers, as a chart and in numbers."""
    prefill = prefill_report(bundle)
    counts = [segment.num_visual_tokens for segment in prefill.segments]
    widths = [last - first + 1 for first, last in (s.layers for s in prefill.segments)]
    return {
        "prefill": prefill,
        "counts": counts,
        "chart": step_chart(widths, counts, most=prefill.num_visual_tokens),
    }


def _pictures(bundle: Bundle, rows: tuple[tuple[Picture, ...], ...]) -> list[list[dict[str, str]]]:
    """Return the pictures of each sample with their pixels."""
    return [
        [
            {
                "title": picture.title,
                "caption": picture.caption,
                "source": "data:image/png;base64,"
                + base64.b64encode(bundle.inside(picture.file).read_bytes()).decode(),
            }
            for picture in row
        ]
        for row in rows
    ]


def _memory(fit: FitReport, report: DeployReport) -> list[dict[str, Any]]:
    """Return what each stage was to take, what there is for it, and what it took here."""
    took = {stage.name: stage.peak_rss_mib for stage in report.stages if stage.status == "done"}
    return [
        {
            "stage": stage,
            "share": None if not stage.available_mib else stage.peak_mib / stage.available_mib,
            "measured_mib": took.get(MEASURED_IN[stage.name]),
        }
        for stage in fit.stages
    ]


def _parity_line(parity: list[VerifyReport]) -> dict[str, Any] | None:
    """Return the worst cosine, never rounded up to what it is not, and equal tokens."""
    verdicts = [report.verdict for report in parity]
    if not verdicts:
        return None
    worst = min(verdict.worst_cosine for verdict in verdicts)
    return {
        "cosine": f"{math.floor(worst * 1e5) / 1e5:.5f}",
        "equal": sum(verdict.num_equal_tokens for verdict in verdicts),
        "total": sum(verdict.num_tokens for verdict in verdicts),
    }


def _conditions(bundle: Bundle, bench: Report | None) -> list[tuple[str, str]]:
    """Return what the page's numbers hold for."""
    manifest = bundle.manifest
    found = [
        ("model", f"{manifest.source} ({manifest.model_type})"),
        ("recipe", msgspec.json.encode(manifest.recipe).decode()),
        ("manifest SHA-256", manifest.sha256),
    ]
    if bench is not None:
        here = bench.environment
        runtimes = ", ".join(f"{name} {version}" for name, version in here.runtimes.items())
        found += [
            ("machine", f"{here.machine}, {here.num_cores} cores, load {here.load_average:.2f}"),
            ("system", f"{here.platform}, Python {here.python}, numpy {here.numpy}"),
            ("runs on", f"{here.backend} on {here.device}; installed: {runtimes}"),
            ("measured", here.measured_at),
        ]
    return found


def _times(bench: Report) -> dict[str, Any]:
    """Return where the time to the first token goes, and the medians as rows."""
    summaries = {"unpruned": bench.unpruned, "pruned": bench.pruned}
    bars = {name: parts(each) for name, each in summaries.items() if each is not None}
    return {
        "chart": bar_chart(bars),
        "columns": table.COLUMNS,
        "rows": table.table_rows(bench),
        "headline": table.headline(bench),
        "verdict": table.verdict(bench),
    }
