"""Which engines a build makes, from which form of each graph, and with which settings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from feather_edge import __version__
from feather_edge.engine_record import (
    EngineRecord,
    OptimizationProfile,
    engine_file,
    engine_folder,
    graph_hash,
)
from feather_edge.engines.jobs import EngineJob, Environment
from feather_edge.engines.memory import estimate, pool_bytes, weight_bytes
from feather_edge.engines.profiles import (
    check_top_k,
    decoder_profiles,
    read_limits,
    vision_profiles,
)
from feather_edge.engines.record import RECORD_VERSION, file_hash
from feather_edge.engines.timing_cache import timing_cache_file
from feather_edge.errors import BuildError
from feather_edge.graphs import CACHE_CAPACITY
from feather_edge.recipes.precision import activations, beyond_opset_18, is_dynamic

if TYPE_CHECKING:
    from pathlib import Path

    from feather_edge.bundle import Bundle
    from feather_edge.engines.memory import MemoryEstimate
    from feather_edge.graphs import GraphForm, GraphSpec
    from feather_edge.recipes import EngineRecipe

__all__ = ["EnginePlan", "check_device", "expected_environment", "notes", "plan_engines"]

ATTENTION_OPSET = 23
"""From here on attention is an operator, which TensorRT fuses as a whole or refuses."""
PLUGIN_BEATS_FUNCTION = (10, 7)
"""From here on TensorRT prefers a plugin to a function of the same name."""


@dataclass(frozen=True, kw_only=True)
class EnginePlan:
    """One engine: where it goes, its job, and what its record will say."""

    engine: Path
    job: EngineJob
    record: EngineRecord
    memory: MemoryEstimate


def expected_environment(recipe: EngineRecipe) -> Environment:
    """Return what a target's recipe expects, for a dry run on another machine."""
    return Environment(tensorrt_version=recipe.tensorrt_version, device=None)


def check_device(recipe: EngineRecipe, environment: Environment, target: str) -> None:
    """Refuse to build for a GPU that is not here; TensorRT-RTX alone needs none.

    Raises:
        BuildError: naming both and what to do.
    """
    if recipe.backend == "tensorrt-rtx":
        return
    device = environment.device
    if device is None:
        raise BuildError(
            "TensorRT builds an engine on the GPU that will run it, and none was found here; run "
            "this command on the device, see what it would do with --dry-run, or use "
            "--target rtx"
        )
    allowed = recipe.compute_capabilities
    if allowed and device.compute_capability not in allowed:
        raise BuildError(
            f"{device.name} has compute capability {device.compute_capability}, but target "
            f"{target} is for {', '.join(allowed)}; choose another --target"
        )


def plan_engines(
    bundle: Bundle,
    recipe: EngineRecipe,
    environment: Environment,
    *,
    target: str,
    plugin: Path | None,
) -> tuple[EnginePlan, ...]:
    """Return the engines of a bundle in the order in which they are built.

    Raises:
        RecipeError: if the limits do not fit the bundle.
        BuildError: if the bundle lacks the form that this TensorRT reads, or a limit is more
            than TensorRT can do.
    """
    _check_precision(bundle)
    limits = read_limits(bundle.manifest, bundle.schedule, recipe)
    if plugin is None:
        check_top_k(limits)
    plan = partial(
        _plan, bundle, recipe=recipe, environment=environment, target=target, plugin=plugin
    )
    form = partial(_choose_form, bundle, recipe=recipe, environment=environment)
    vision = bundle.vision_encoder
    plans = [plan(vision, form(vision), vision_profiles(vision, limits))]
    for index, graph in enumerate(bundle.decoders):
        chosen = form(graph)
        spec = graph.of(chosen)
        profiles = decoder_profiles(spec, index, limits, profiles=recipe.profiles)
        plans.append(plan(spec, chosen, profiles))
    return tuple(plans)


def notes(bundle: Bundle, recipe: EngineRecipe) -> tuple[str, ...]:
    """Return what is allowed but may not be what was meant."""
    found = read_limits(bundle.manifest, bundle.schedule, recipe).notes
    precision = bundle.manifest.recipe.precision
    floats = activations(bundle.manifest.recipe, precision)
    if floats != recipe.precision:
        is_float = floats == precision
        found += (
            (
                f"the bundle {'is' if is_float else 'has activations in'} {floats}; "
                f"{recipe.precision} suits this target better, and that is decided at export: "
                f"--{'precision' if is_float else 'activations'} {recipe.precision}"
            ),
        )
    return found


def _plan(
    bundle: Bundle,
    spec: GraphSpec,
    form: GraphForm,
    profiles: tuple[OptimizationProfile, ...],
    *,
    recipe: EngineRecipe,
    environment: Environment,
    target: str,
    plugin: Path | None,
) -> EnginePlan:
    import onnx

    engine = engine_file(engine_folder(bundle.path, target), spec.name)
    library = plugin if any(tensor.name == "num_kept" for tensor in spec.inputs) else None
    job = _job(
        bundle, spec, form, profiles,
        recipe=recipe, environment=environment, engine=engine, library=library,
    )  # fmt: skip
    # What an engine is built for is a device's own, but for RTX, whose engines fit many.
    device = None if recipe.backend == "tensorrt-rtx" else environment.device
    record = EngineRecord(
        record_version=RECORD_VERSION,
        feather_edge_version=__version__,
        target=target,
        graph=spec.name,
        opset=form.opset,
        graph_sha256=graph_hash(bundle, spec, form),
        precision=bundle.manifest.recipe.precision,
        backend=recipe.backend,
        tensorrt_version=environment.tensorrt_version,
        cuda_version=None if device is None else device.cuda_version,
        device_name=None if device is None else device.name,
        compute_capabilities=(
            job.compute_capabilities if device is None else (device.compute_capability,)
        ),
        profiles=profiles,
        builder_optimization_level=job.builder_optimization_level,
        pool_limits=job.pool_limits,
        decomposable_attention=job.decomposable_attention,
        plugin=None if library is None else library.name,
        plugin_sha256=None if library is None else file_hash(library),
    )
    model = onnx.load(bundle.path / form.file, load_external_data=False)
    memory = estimate(weight_bytes(model), spec, profiles)
    return EnginePlan(engine=engine, job=job, record=record, memory=memory)


def _job(
    bundle: Bundle,
    spec: GraphSpec,
    form: GraphForm,
    profiles: tuple[OptimizationProfile, ...],
    *,
    recipe: EngineRecipe,
    environment: Environment,
    engine: Path,
    library: Path | None,
) -> EngineJob:
    """Return what the building process is to do; it writes beside the engine."""
    unfinished = engine.with_name(f".{spec.name}").absolute()
    is_rtx = recipe.backend == "tensorrt-rtx"
    cache = timing_cache_file(recipe, environment, precision=bundle.manifest.recipe.precision)
    return EngineJob(
        graph=spec.name,
        backend=recipe.backend,
        model=str((bundle.path / form.file).absolute()),
        engine=f"{unfinished}.partial",
        result=f"{unfinished}.result",
        profiles=profiles,
        compute_capabilities=recipe.compute_capabilities if is_rtx else (),
        builder_optimization_level=recipe.builder_optimization_level,
        pool_limits=pool_bytes(recipe.pool_limit),
        timing_cache=None if cache is None else str(cache.absolute()),
        plugin=None if library is None else str(library.absolute()),
        strip_functions=library is not None and _function_wins(recipe, environment),
        fixed_dims=_fixed_dims(spec, profiles),
        # No fused attention has float32.
        decomposable_attention=(
            spec.inputs[0].dtype == "float32" and form.opset >= ATTENTION_OPSET
        ),
    )


def _fixed_dims(spec: GraphSpec, profiles: tuple[OptimizationProfile, ...]) -> dict[str, int]:
    """Return the capacity of caches in place, which TensorRT's parser must know."""
    past = next(iter(spec.caches_in_place.values()), None)
    return {} if past is None else {CACHE_CAPACITY: profiles[0].inputs[past].max[2]}


def _choose_form(
    bundle: Bundle, spec: GraphSpec, *, recipe: EngineRecipe, environment: Environment
) -> GraphForm:
    """Return the newest form that the TensorRT at hand reads, or the one asked for."""
    readable = [form for form in spec.forms if _reads(form, recipe, environment)]
    if recipe.opset != "auto":
        readable = [form for form in readable if form.opset == int(recipe.opset)]
    if readable:
        return max(readable, key=lambda form: form.opset)
    has = ", ".join(f"{form.opset} (TensorRT {form.tensorrt})" for form in spec.forms)
    raise BuildError(
        f"{bundle.path} has {spec.name} in opset {has}, but {recipe.backend} "
        f"{environment.tensorrt_version} with --opset {recipe.opset} reads none of these; "
        f"{_way_out(bundle, spec)}"
    )


def _way_out(bundle: Bundle, spec: GraphSpec) -> str:
    if len(spec.forms) > 1:
        return "choose another --opset"
    beyond = beyond_opset_18(bundle.manifest.recipe)
    if not beyond:
        return "export with --opset all"
    return f"opset 18 cannot hold {beyond}, so export with --precision fp16"


def _check_precision(bundle: Bundle) -> None:
    if is_dynamic(bundle.manifest.recipe):
        raise BuildError(
            f"{bundle.path} holds int8-dynamic graphs, which quantise activations at run time as "
            f"CPUs like it; TensorRT has no such operator, so export with --precision int8 or int4"
        )


def _reads(form: GraphForm, recipe: EngineRecipe, environment: Environment) -> bool:
    # TensorRT-RTX counts from 1 and has had the newest operators since 1.5.
    if recipe.backend == "tensorrt-rtx":
        return True
    return _numbers(environment.tensorrt_version) >= _numbers(form.tensorrt)


def _function_wins(recipe: EngineRecipe, environment: Environment) -> bool:
    is_rtx = recipe.backend == "tensorrt-rtx"
    return not is_rtx and _numbers(environment.tensorrt_version) < PLUGIN_BEATS_FUNCTION


def _numbers(version: str) -> tuple[int, ...]:
    """Return major and minor of ``10.3.0`` or ``>=10.3``."""
    found = re.findall(r"\d+", version)[:2]
    return tuple(map(int, found))
