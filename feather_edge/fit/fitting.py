"""The main path of ``feather-edge fit``: sizes, what they take, what there is, what would help."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feather_edge.errors import FeatherEdgeError, FitError
from feather_edge.fit.advice import Question, changes
from feather_edge.fit.budget import target_budget, this_machine
from feather_edge.fit.costs import demand
from feather_edge.fit.report import (
    ERROR,
    Advice,
    DiskFit,
    FitReport,
    StageFit,
    StageName,
    Verdict,
    verdict_of,
    worst,
)
from feather_edge.fit.sizes import planned_sizes, read_sizes
from feather_edge.recipes import (
    EngineRecipe,
    default_recipe_name,
    load_engine_recipe,
    load_recipe,
    override_engine,
)
from feather_edge.runtime.spans import typical_layout

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feather_edge.bundle import Bundle
    from feather_edge.fit.budget import Budget, Machine
    from feather_edge.fit.costs import Demand
    from feather_edge.fit.sizes import ModelSizes
    from feather_edge.recipes import ExportRecipe

__all__ = ["fit", "require_fit"]

THIS_MACHINE = "this machine"
STAGES: tuple[StageName, ...] = ("export", "build", "run")
TEXT_TOKENS, ANSWER_TOKENS = 64, 128
"""Of a prompt and its answer on this machine's CPU, with one picture, where nothing is given."""
LEAST_GAIN = 0.02
"""Of the peak; a change that saves less is no advice."""
MAX_SWAP_RATIO = 1.0
"""Swap over memory; a builder that swaps more than this much does not end."""


def fit(
    source: str | Path | Bundle,
    *,
    target: str | None = None,
    recipe: ExportRecipe | None = None,
    engine_recipe: EngineRecipe | None = None,
    limits: Mapping[str, Any] | None = None,
    jobs: int = 1,
    stages: tuple[StageName, ...] = STAGES,
    folder: Path = Path(),
    machine: Machine | None = None,
) -> FitReport:
    """Return whether a model fits a device, told before anything is exported or built.

    Args:
        source: a checkpoint (folder, hub id or ``demo``; weights may be missing) or a bundle.
        target: name or file of an engine recipe; the model runs there as TensorRT engines. None
            is this machine's CPU.
        recipe: of the export of a checkpoint; None takes the default one.
        engine_recipe: limits and settings in place of the target's own.
        limits: fields of it that are given, as ``override_engine`` takes them.
        jobs: engines built at once.
        stages: that count; those that a bundle or a CPU does not have are left out.
        folder: where results will go, for the free disk of this machine.
        machine: what is free here; None looks.

    Raises:
        BundleError, CheckpointError, RecipeError: if the source or a recipe cannot be read, or
            they do not fit each other.
    """
    on_gpu = target is not None
    sizes = read_sizes(source, recipe)
    if engine_recipe is None and target is None:
        settings = _cpu_limits(sizes, limits or {})
    else:
        settings = override_engine(
            engine_recipe or load_engine_recipe(str(target)), **(limits or {})
        )
    budget = target_budget(settings if on_gpu else None, machine or this_machine(folder))
    question = Question(export=_export_recipe(source, sizes, recipe), engine=settings, jobs=jobs)
    found = _answer(question, sizes, on_gpu=on_gpu)
    fits = _stages(found, budget, stages)
    disk = _disk(found, budget, sizes)
    verdict = worst([stage.verdict for stage in fits] + [_disk_verdict(disk)])
    return FitReport(
        target=THIS_MACHINE if target is None else Path(target).stem,
        verdict=verdict,
        stages=fits,
        advice=() if verdict == "fits" else _advice(question, sizes, budget, fits, on_gpu=on_gpu),
        source=sizes.source,
        precision=question.export.precision,
        limits=_limits(settings),
        available=budget.words,
        graphs=found.graphs,
        disk=disk,
        notes=(*sizes.notes, *budget.notes),
    )


def require_fit(
    source: str | Path | Bundle,
    *,
    force: bool,
    target: str | None = None,
    recipe: ExportRecipe | None = None,
    engine_recipe: EngineRecipe | None = None,
    jobs: int = 1,
    stages: tuple[StageName, ...] = STAGES,
    folder: Path = Path(),
    machine: Machine | None = None,
) -> FitReport:
    """Refuse what does not fit, on the grounds of ``fit``.

    Args:
        source: as of ``fit``, like all but ``force``.
        force: go on all the same.
        target: the device.
        recipe: of the export.
        engine_recipe: limits and settings.
        jobs: engines built at once.
        stages: that count.
        folder: where results will go.
        machine: what is free here.

    Returns:
        The report, so that one that was forced can be told of.

    Raises:
        FitError: with the reason and what would help, in one line.
    """
    report = fit(
        source,
        target=target,
        recipe=recipe,
        engine_recipe=engine_recipe,
        jobs=jobs,
        stages=stages,
        folder=folder,
        machine=machine,
    )
    if report.verdict == "does not fit" and not force:
        raise FitError(f"{_reason(report)}; {_ways_out(report)}go on all the same with --force")
    return report


def _reason(report: FitReport) -> str:
    """Return why a model does not fit, in one line without an end."""
    for stage in report.stages:
        if stage.verdict == "does not fit":
            return (
                f"{report.source} does not fit {report.target}: {stage.name} would peak at about "
                f"{stage.peak_mib:.0f} MiB, and there are {report.available}"
            )
    disk = report.disk
    return (
        f"{report.source} does not fit {report.target}: the bundle and its engines take about "
        f"{disk.bundle_mib + disk.engines_mib:.0f} MiB of disk, and {disk.available_mib or 0:.0f} "
        f"MiB are free"
    )


def _ways_out(report: FitReport) -> str:
    if not report.advice:
        return ""
    return f"what would help: {' | '.join(str(advice) for advice in report.advice)}; or "


def _answer(question: Question, sizes: ModelSizes, *, on_gpu: bool) -> Demand:
    return demand(sizes, question.engine, jobs=question.jobs, on_gpu=on_gpu)


def _export_recipe(
    source: str | Path | Bundle, sizes: ModelSizes, recipe: ExportRecipe | None
) -> ExportRecipe:
    if sizes.checkpoint is None:
        return sizes.manifest.recipe
    return recipe or load_recipe(default_recipe_name(str(source)))


def _cpu_limits(sizes: ModelSizes, given: Mapping[str, Any]) -> EngineRecipe:
    """Return one picture, a short question and a short answer where nothing else is given."""
    fields = {name: value for name, value in given.items() if value is not None}
    text = fields.setdefault("max_prompt_tokens", TEXT_TOKENS)
    visual = fields.setdefault(
        "max_visual_tokens", typical_layout(sizes.manifest).num_visual_tokens
    )
    fields.setdefault("opt_prompt_tokens", text)
    fields.setdefault("max_cache_capacity", text + visual + ANSWER_TOKENS)
    return EngineRecipe(**fields)


def _limits(recipe: EngineRecipe) -> dict[str, object]:
    names = ("max_prompt_tokens", "max_visual_tokens", "max_cache_capacity", "max_batch_size")
    return {name: getattr(recipe, name) for name in (*names, "max_keep_ratio", "profiles")}


def _stages(found: Demand, budget: Budget, wanted: tuple[StageName, ...]) -> tuple[StageFit, ...]:
    return tuple(
        StageFit(
            name=name,
            peak_mib=round(found.peak_mib(name), 1),
            available_mib=budget.stages[name],
            verdict=verdict_of(found.peak_mib(name), budget.stages[name]),
            parts={part: round(size, 1) for part, size in found.stages[name].items()},
        )
        for name in STAGES
        if name in found.stages and name in wanted
    )


def _disk(found: Demand, budget: Budget, sizes: ModelSizes) -> DiskFit:
    is_there = sizes.checkpoint is None
    return DiskFit(
        bundle_mib=0.0 if is_there else round(found.bundle_mib, 1),
        engines_mib=round(found.engines_mib, 1),
        available_mib=None if budget.disk_mib is None else round(budget.disk_mib, 1),
    )


def _disk_verdict(disk: DiskFit) -> Verdict:
    is_full = disk.available_mib is not None and (
        disk.bundle_mib + disk.engines_mib > disk.available_mib
    )
    return "does not fit" if is_full else "fits"


def _advice(
    question: Question,
    sizes: ModelSizes,
    budget: Budget,
    fits: tuple[StageFit, ...],
    *,
    on_gpu: bool,
) -> tuple[Advice, ...]:
    """Return the changes that help the stages that are too much, best first."""
    wanted = tuple(stage.name for stage in fits)
    hurt = [stage.name for stage in fits if stage.verdict != "fits"]
    if not hurt:
        return ()
    before = max(stage.peak_mib for stage in fits if stage.name in hurt)
    found = []
    for change in changes(question, sizes, on_gpu=on_gpu):
        changed = sizes
        try:
            if change.question.export != question.export and sizes.checkpoint is not None:
                changed = planned_sizes(
                    sizes.checkpoint, change.question.export, source=sizes.source
                )
            after = _stages(_answer(change.question, changed, on_gpu=on_gpu), budget, wanted)
        except FeatherEdgeError:  # a checkpoint that is quantised already has one precision
            continue
        peak = max(stage.peak_mib for stage in after if stage.name in hurt)
        if peak < before * (1 - LEAST_GAIN):
            verdict = worst([stage.verdict for stage in after])
            found.append(
                Advice(change=change.words, options=change.options, peak_mib=peak, verdict=verdict)
            )
    return (*sorted(found, key=lambda advice: advice.peak_mib), *_swap(fits))


def _swap(fits: tuple[StageFit, ...]) -> tuple[Advice, ...]:
    """Return swap for the build where that is all that does not fit."""
    builds = [stage for stage in fits if stage.name == "build" and stage.verdict != "fits"]
    rest = worst([stage.verdict for stage in fits if stage.name != "build"])
    if not builds or rest == "does not fit":
        return ()
    build = builds[0]
    available = build.available_mib or 0.0
    # With ERROR on top, so that the verdict is no longer tight.
    swap_gib = math.ceil((build.peak_mib * (1 + ERROR) - available) / 1024)
    if swap_gib * 1024 > available * MAX_SWAP_RATIO:
        return ()
    return (
        Advice(
            change=f"{swap_gib} GiB of swap, for the build only",
            options=f"sudo fallocate -l {swap_gib}G /swapfile && sudo chmod 600 /swapfile && "
            f"sudo mkswap /swapfile && sudo swapon /swapfile",
            peak_mib=build.peak_mib,
            verdict=rest,
        ),
    )
