"""Stage 2, the main path: from a bundle's graphs to engines for the GPU of a target."""

from __future__ import annotations

import concurrent.futures
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from feather_edge.engine_record import EngineRecord
from feather_edge.engines.dry_run import DryRun, as_text, describe
from feather_edge.engines.plan import (
    EnginePlan,
    check_device,
    expected_environment,
    notes,
    plan_engines,
)
from feather_edge.engines.process import describe_environment, run_job
from feather_edge.engines.record import is_up_to_date, publish
from feather_edge.errors import BuildError
from feather_edge.locking import exclusive
from feather_edge.staging import write_whole

if TYPE_CHECKING:
    from feather_edge.bundle import Bundle
    from feather_edge.engines.process import OnPhase
    from feather_edge.recipes import EngineRecipe

__all__ = ["BuildReport", "BuiltEngine", "build_engines", "describe_build"]


class BuiltEngine(msgspec.Struct, frozen=True, kw_only=True):
    """One engine of a report; ``is_new`` is False where it was up to date already."""

    graph: str
    opset: int
    path: str
    bytes: int
    build_s: float
    peak_rss_mib: float
    plugin: str | None
    is_new: bool


class BuildReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a build did."""

    target: str
    backend: str
    tensorrt_version: str
    notes: tuple[str, ...]
    engines: tuple[BuiltEngine, ...]


def build_engines(
    bundle: Bundle,
    recipe: EngineRecipe,
    *,
    target: str,
    plugin: Path | None = None,
    jobs: int = 1,
    force: bool = False,
    timeout_s: float | None = None,
    on_phase: OnPhase | None = None,
) -> BuildReport:
    """Build the engines of ``bundle`` into ``engines/<target>`` of its folder.

    Each engine is built in a process of its own, one after the other unless ``jobs`` says
    otherwise, so peak memory is one segment's. An engine appears when it is whole; one that is up
    to date is left alone unless ``force``.

    Raises:
        BuildError: if TensorRT or the target's GPU is not here, or a graph does not build.
        RecipeError: if the limits do not fit the bundle.
    """
    # 1. What builds here, and is it the target's GPU?
    environment = describe_environment(recipe.backend)
    check_device(recipe, environment, target)
    # 2. One plan per graph: its form, its profiles, its job.
    plans = plan_engines(bundle, recipe, environment, target=target, plugin=plugin)
    # 3. Engines that a build would only repeat are left alone.
    stale = [plan for plan in plans if force or not is_up_to_date(plan.engine, plan.record)]
    # 4. The rest, each in its own process; the first failure stops what has not begun.
    failed = threading.Event()
    build = partial(_build, failed=failed, timeout_s=timeout_s, on_phase=on_phase)
    with (
        exclusive(bundle.path),
        concurrent.futures.ThreadPoolExecutor(max_workers=jobs) as pool,
    ):
        pending = [pool.submit(build, plan) for plan in stale]
        try:
            for future in concurrent.futures.as_completed(pending):
                future.result()
        except BaseException:
            failed.set()
            pool.shutdown(cancel_futures=True)
            raise
    # 5. What is there now, read back from the records.
    return BuildReport(
        target=target,
        backend=recipe.backend,
        tensorrt_version=environment.tensorrt_version,
        notes=notes(bundle, recipe),
        engines=tuple(_built(plan, is_new=plan in stale) for plan in plans),
    )


def describe_build(
    bundle: Bundle, recipe: EngineRecipe, *, target: str, plugin: Path | None = None
) -> tuple[str, DryRun]:
    """Return what a build would do, as text and as a document.

    Needs neither TensorRT nor a GPU: where they are not what the target needs, the plan is for
    the version that the target's recipe expects.
    """
    try:
        environment = describe_environment(recipe.backend)
        check_device(recipe, environment, target)
        source = "installed here"
    except BuildError:
        environment, source = expected_environment(recipe), "that the target expects"
    plans = plan_engines(bundle, recipe, environment, target=target, plugin=plugin)
    dry_run = describe(plans, recipe, environment, target=target, notes=notes(bundle, recipe))
    return as_text(dry_run, source=source), dry_run


def _build(
    plan: EnginePlan,
    *,
    failed: threading.Event,
    timeout_s: float | None,
    on_phase: OnPhase | None,
) -> None:
    """Build one engine and publish it; a failure leaves the log and nothing else."""
    if failed.is_set():
        return
    job = plan.job
    plan.engine.parent.mkdir(parents=True, exist_ok=True)
    if job.timing_cache is not None:
        Path(job.timing_cache).parent.mkdir(parents=True, exist_ok=True)
    partial_engine, result_file = Path(job.engine), Path(job.result)
    try:
        result = run_job(
            job, log=plan.engine.with_suffix(".log"), timeout_s=timeout_s, on_phase=on_phase
        )
        record = msgspec.structs.replace(
            plan.record,
            build_s=result.build_s,
            peak_rss_mib=result.peak_rss_mib,
            num_bytes=partial_engine.stat().st_size,
        )
        if job.plugin is not None:  # engines travel with the plugin that they need
            library = Path(job.plugin)
            write_whole(plan.engine.parent / library.name, library.read_bytes())
        publish(partial_engine, plan.engine, record)
    except BaseException:
        failed.set()
        raise
    finally:
        for leftover in (partial_engine, result_file, result_file.with_suffix(".job")):
            leftover.unlink(missing_ok=True)


def _built(plan: EnginePlan, *, is_new: bool) -> BuiltEngine:
    text = plan.engine.with_suffix(".json").read_bytes()
    record = msgspec.json.decode(text, type=EngineRecord)
    return BuiltEngine(
        graph=record.graph,
        opset=record.opset,
        path=str(plan.engine),
        bytes=record.num_bytes,
        build_s=record.build_s,
        peak_rss_mib=record.peak_rss_mib,
        plugin=record.plugin,
        is_new=is_new,
    )
