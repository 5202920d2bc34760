"""The stages of the chain: what each depends on, what it does, and how it leaves word of it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec

from feather_edge import __version__
from feather_edge.bench import Settings, benchmark, scene_requests
from feather_edge.bundle import Bundle
from feather_edge.checkpoint import resolve_checkpoint
from feather_edge.checkpoint.identity import checkpoint_identity
from feather_edge.deploy.deployment import Outcome, Stage
from feather_edge.deploy.target import plan_elsewhere
from feather_edge.deploy.verification import is_verified, run_verify
from feather_edge.engine_record import read_record
from feather_edge.engines.build import build_engines
from feather_edge.engines.process import describe_environment
from feather_edge.engines.record import file_hash
from feather_edge.errors import BackendError, BundleError
from feather_edge.export.pipeline import export
from feather_edge.fit import require_fit
from feather_edge.platform_facts import package_version
from feather_edge.runtime.backends import create_backend
from feather_edge.runtime.fingerprint import fingerprint
from feather_edge.runtime.session import default_pruning

if TYPE_CHECKING:
    from feather_edge.deploy.deployment import Deployment, Work
    from feather_edge.fit import FitReport

__all__ = ["BENCH", "BUILD_ENGINE", "CHAIN", "EXPORT", "FIT", "VERIFY", "fit_report"]


# -- fit ---------------------------------------------------------------------------------------


def _fit_inputs(work: Work) -> dict[str, str]:
    folder = resolve_checkpoint(work.deployment.checkpoint, with_weights=False)
    return {
        "checkpoint": checkpoint_identity(folder, with_weights=False),
        "recipe": _hash(work.deployment.recipe),
        "feather-edge": __version__,
        "target": _hash(work.target.engines),
        "this machine": str(work.target.obstacle),
    }


def fit_report(deployment: Deployment, *, force: bool) -> FitReport:
    """Return whether a deployment fits its target; what happens elsewhere does not count.

    Raises:
        FitError: if it does not, unless ``force``.
    """
    target = deployment.target
    return require_fit(
        deployment.checkpoint,
        force=force,
        target=None if target.engines is None else target.spelling,
        recipe=deployment.recipe,
        stages=("export", "build", "run") if target.builds_here else ("build", "run"),
        folder=deployment.output.parent,
    )


def _fit(work: Work) -> Outcome:
    report = fit_report(work.deployment, force=work.deployment.force)
    peaks = ", ".join(f"{stage.name} {stage.peak_mib:.0f}" for stage in report.stages)
    return Outcome(summary=f"estimated peaks in MiB: {peaks}", measured=report.to_dict())


# -- export ------------------------------------------------------------------------------------


def _export_inputs(work: Work) -> dict[str, str]:
    return {
        "checkpoint": checkpoint_identity(work.deployment.checkpoint_folder),
        "recipe": _hash(work.deployment.recipe),
        "feather-edge": __version__,
        "onnx-ir": str(package_version("onnx-ir")),
    }


def _export(work: Work) -> Outcome:
    bundle = export(
        work.deployment.checkpoint_folder,
        work.folder,
        work.deployment.recipe,
        force=True,
        on_progress=lambda label, num_done_bytes, num_total_bytes: work.watch.on_step(
            label, num_done_bytes, num_total_bytes
        ),
    )
    manifest = bundle.manifest
    num_bytes = sum(record.num_bytes for record in manifest.files.values())
    stages = ", ".join(map(str, bundle.schedule.stages)) or "none"
    return Outcome(
        summary=(
            f"{num_bytes / 2**20:.1f} MiB in {len(manifest.graphs)} graphs, "
            f"{manifest.recipe.precision}, prunes before layers: {stages}"
        ),
        result={"manifest_sha256": manifest.sha256, "num_bytes": num_bytes},
    )


def _is_exported(work: Work) -> bool:
    try:
        found = Bundle.open(work.folder).manifest.sha256
    except BundleError:
        return False
    return bool(found == work.result("export").get("manifest_sha256"))


# -- build-engine ------------------------------------------------------------------------------


def _build_inputs(work: Work) -> dict[str, str]:
    target, plugin = work.target, work.deployment.plugin
    if target.engines is None:
        return {"target": target.name}
    inputs = {
        "bundle": Bundle.open(work.folder).manifest.sha256,
        "feather-edge": __version__,
        "target": _hash(target.engines),
        "plugin": "none" if plugin is None else file_hash(plugin),
        "this machine": str(target.obstacle),
    }
    if target.builds_here:
        inputs["TensorRT"] = _hash(describe_environment(target.engines.backend))
    return inputs


def _build(work: Work) -> Outcome:
    target = work.target
    if target.engines is None:
        return Outcome(
            summary=f"{target.backend} runs the graphs as they are",
            status="not-needed",
            reason=f"target {target.name} has no engines",
        )
    if not target.builds_here:
        plans = plan_elsewhere(target, Bundle.open(work.folder), plugin=work.deployment.plugin)
        return Outcome(
            summary=(
                f"{len(plans)} engines of {target.backend} {target.engines.tensorrt_version}, "
                f"from opset {plans[0].record.opset}, are built on the device"
            ),
            status="to-do",
            reason=target.obstacle,
        )
    report = build_engines(
        Bundle.open(work.folder),
        target.engines,
        target=target.name,
        plugin=work.deployment.plugin,
        on_phase=lambda graph, phase, num_done, num_steps: work.watch.on_step(
            f"{graph}: {phase}", num_done, num_steps
        ),
    )
    num_bytes = sum(engine.bytes for engine in report.engines)
    return Outcome(
        summary=(
            f"{len(report.engines)} engines of {report.backend} {report.tensorrt_version}, "
            f"{num_bytes / 2**20:.1f} MiB"
        ),
        result={
            "tensorrt_version": report.tensorrt_version,
            "notes": list(report.notes),
            "opsets": {engine.graph: engine.opset for engine in report.engines},
        },
        peak_rss_mib=max(engine.peak_rss_mib for engine in report.engines),
    )


def _is_built(work: Work) -> bool:
    target = work.target
    if target.engines is None or not target.builds_here:
        return True
    try:
        for graph in Bundle.open(work.folder).manifest.graphs:
            read_record(work.folder, target.name, graph.name)
    except BackendError:
        return False
    return True


# -- verify ------------------------------------------------------------------------------------


def _verify_inputs(work: Work) -> dict[str, str]:
    return {
        **_run_inputs(work),
        "against-checkpoint": str(work.deployment.against_checkpoint),
        "torch": str(package_version("torch")) if work.deployment.against_checkpoint else "unused",
    }


# -- bench -------------------------------------------------------------------------------------


def _bench_inputs(work: Work) -> dict[str, str]:
    rounds = {"warmup": str(work.deployment.warmup), "repeat": str(work.deployment.repeat)}
    return {**_run_inputs(work), **rounds}


def _bench(work: Work) -> Outcome:
    target = work.target
    if target.obstacle is not None:
        return Outcome(
            summary=f"times of another machine say nothing about {target.name}",
            status="to-do",
            reason=target.obstacle,
        )
    bundle = Bundle.open(work.folder)
    settings = Settings(
        pruning=default_pruning(bundle),
        backend=target.backend,
        target=target.target_here,
        warmup=work.deployment.warmup,
        repeat=work.deployment.repeat,
    )
    report = benchmark(
        bundle,
        scene_requests(seed=settings.pruning.seed),
        settings,
        on_progress=lambda num_done, num_total: work.watch.on_step(
            "requests", num_done, num_total
        ),
    )
    environment = msgspec.structs.replace(report.environment, bundle=work.deployment.output.name)
    named = msgspec.structs.replace(report, environment=environment)
    return Outcome(
        summary=f"rounds, unpruned and pruned in turn: {work.deployment.repeat}",
        measured=msgspec.to_builtins(named),
        peak_rss_mib=report.session.peak_rss_mib,
    )


# -- what several share ------------------------------------------------------------------------


def _run_inputs(work: Work) -> dict[str, str]:
    """Return what a run of the bundle depends on: bundle, engines, software and machine."""
    target, bundle = work.target, Bundle.open(work.folder)
    backend = create_backend(target.backend_here, bundle, target=target.target_here)
    found: dict[str, Any] = msgspec.to_builtins(fingerprint(bundle, backend))
    inputs = {name.replace("_", "-"): str(value) for name, value in found.items()}
    return {**inputs, "target": target.name, "this machine": str(target.obstacle)}


def _hash(struct: msgspec.Struct | None) -> str:
    return hashlib.sha256(msgspec.json.encode(struct)).hexdigest()


FIT = Stage(name="fit", inputs=_fit_inputs, run=_fit)
EXPORT = Stage(name="export", inputs=_export_inputs, run=_export, is_intact=_is_exported)
BUILD_ENGINE = Stage(name="build-engine", inputs=_build_inputs, run=_build, is_intact=_is_built)
VERIFY = Stage(name="verify", inputs=_verify_inputs, run=run_verify, is_intact=is_verified)
BENCH = Stage(name="bench", inputs=_bench_inputs, run=_bench)
CHAIN = (FIT, EXPORT, BUILD_ENGINE, VERIFY, BENCH)
