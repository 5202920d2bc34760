"""The main path of build-engine with a worker that writes bytes instead of engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from feather_edge.engine_record import check_fit, read_record
from feather_edge.engines import build as build_module
from feather_edge.engines.build import BuildReport, build_engines, describe_build
from feather_edge.engines.jobs import Device, EngineJob, EngineResult, Environment
from feather_edge.errors import BackendError, BuildError
from feather_edge.recipes import EngineRecipe, ExportRecipe, load_engine_recipe, override_engine

if TYPE_CHECKING:
    from support.bundles import BundleFactory

    from feather_edge.bundle import Bundle

ORIN = Device(name="Orin", compute_capability="8.7", cuda_version="12.6")
JETPACK_6 = Environment(tensorrt_version="10.3.0", device=ORIN)
NOTHING = Environment(tensorrt_version="1.7.1.116", device=None)


class FakeBuilder:
    """Stands in for the worker processes and the machine."""

    def __init__(self) -> None:
        self.environment = JETPACK_6
        self.jobs: list[EngineJob] = []
        self.failing: str | None = None

    def run_job(self, job: EngineJob, **_: Any) -> EngineResult:
        self.jobs.append(job)
        Path(job.engine).write_bytes(b"engine of " + job.graph.encode())
        if job.graph == self.failing:
            raise BuildError(f"TensorRT cannot build {job.graph}")
        return EngineResult(build_s=2.0, peak_rss_mib=300.0)


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> FakeBuilder:
    fake = FakeBuilder()
    monkeypatch.setattr(build_module, "run_job", fake.run_job)
    monkeypatch.setattr(build_module, "describe_environment", lambda _: fake.environment)
    return fake


@pytest.fixture
def bundle(bundles: BundleFactory, tmp_path: Path) -> Bundle:
    import shutil

    from feather_edge.bundle import Bundle

    source = bundles(recipe=ExportRecipe(precision="fp16"), num_layers=4).bundle.path
    return Bundle.open(shutil.copytree(source, tmp_path / "bundle"))


@pytest.fixture
def recipe(tmp_path: Path) -> EngineRecipe:
    return override_engine(
        load_engine_recipe("orin-nano-8gb"), timing_cache=str(tmp_path / "timing")
    )


def build(bundle: Bundle, recipe: EngineRecipe, **options: Any) -> BuildReport:
    return build_engines(bundle, recipe, target="orin-nano-8gb", **options)


def test_one_engine_a_graph_with_record_beside_it(
    bundle: Bundle, recipe: EngineRecipe, builder: FakeBuilder
) -> None:
    report = build(bundle, recipe)
    folder = bundle.path / "engines" / "orin-nano-8gb"
    graphs = ["vision_encoder", "decoder_0", "decoder_1", "decoder_2"]
    assert [engine.graph for engine in report.engines] == graphs
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        f"{graph}.{kind}" for graph in graphs for kind in ("engine", "json")
    )
    assert report.tensorrt_version == "10.3.0"
    record = read_record(bundle.path, "orin-nano-8gb", "decoder_1")
    assert (record.opset, record.device_name, record.cuda_version) == (18, "Orin", "12.6")
    assert (record.build_s, record.num_bytes) == (2.0, len(b"engine of decoder_1"))
    assert [profile.name for profile in record.profiles] == ["both"]


def test_engines_that_are_up_to_date_are_left_alone(
    bundle: Bundle, recipe: EngineRecipe, builder: FakeBuilder
) -> None:
    build(bundle, recipe)
    builder.jobs.clear()
    assert [engine.is_new for engine in build(bundle, recipe).engines] == [False] * 4
    assert not builder.jobs
    assert [engine.is_new for engine in build(bundle, recipe, force=True).engines] == [True] * 4


@pytest.mark.parametrize(
    "change",
    [
        {"max_batch_size": 2},
        {"builder_optimization_level": 1},
        {"pool_limit": ("workspace:1G",)},
        {"profiles": "two"},
    ],
)
def test_another_setting_builds_again(
    bundle: Bundle, recipe: EngineRecipe, builder: FakeBuilder, change: dict[str, Any]
) -> None:
    build(bundle, recipe)
    report = build(bundle, override_engine(recipe, **change))
    assert report.engines[-1].is_new


def test_another_tensorrt_or_a_damaged_engine_builds_again(
    bundle: Bundle, recipe: EngineRecipe, builder: FakeBuilder
) -> None:
    build(bundle, recipe)
    Path(build(bundle, recipe).engines[1].path).write_bytes(b"torn")
    assert [engine.is_new for engine in build(bundle, recipe).engines] == [
        False,
        True,
        False,
        False,
    ]
    builder.environment = msgspec.structs.replace(JETPACK_6, tensorrt_version="10.4.0")
    assert all(engine.is_new for engine in build(bundle, recipe).engines)


def test_a_failure_leaves_no_half_engine_and_keeps_the_old_one(
    bundle: Bundle, recipe: EngineRecipe, builder: FakeBuilder
) -> None:
    build(bundle, recipe)
    builder.failing = "decoder_1"
    with pytest.raises(BuildError, match="decoder_1"):
        build(bundle, recipe, force=True)
    folder = bundle.path / "engines" / "orin-nano-8gb"
    assert not [file for file in folder.iterdir() if file.name.startswith(".")]
    assert read_record(bundle.path, "orin-nano-8gb", "decoder_1").num_bytes > 0


def test_nothing_begins_after_a_failure(
    bundle: Bundle, recipe: EngineRecipe, builder: FakeBuilder
) -> None:
    builder.failing = "decoder_0"
    with pytest.raises(BuildError, match="decoder_0"):
        build(bundle, recipe)
    assert [job.graph for job in builder.jobs] == ["vision_encoder", "decoder_0"]


def test_jobs_of_a_jetson(bundle: Bundle, recipe: EngineRecipe, builder: FakeBuilder) -> None:
    build(bundle, recipe, jobs=2)
    job = next(job for job in builder.jobs if job.graph == "decoder_0")
    assert job.model.endswith("onnx/decoder_0.opset18.onnx")
    assert job.compute_capabilities == ()
    assert job.pool_limits == {"workspace": 512 * 2**20, "tactic_dram": 2**30}
    assert job.timing_cache is not None
    assert job.timing_cache.endswith("timing/orin-sm87-tensorrt-10.3.0-fp16.cache")
    assert not job.decomposable_attention


def test_the_newest_form_for_a_new_tensorrt(
    bundle: Bundle, recipe: EngineRecipe, builder: FakeBuilder
) -> None:
    builder.environment = msgspec.structs.replace(JETPACK_6, tensorrt_version="11.4.1")
    assert {engine.opset for engine in build(bundle, recipe).engines} == {24}
    for opset in (23, 18):
        older = override_engine(recipe, opset=str(opset))
        assert {engine.opset for engine in build(bundle, older).engines} == {opset}


def test_caches_in_place_get_the_capacity_of_their_segment(
    bundle: Bundle, recipe: EngineRecipe, builder: FakeBuilder
) -> None:
    builder.environment = msgspec.structs.replace(JETPACK_6, tensorrt_version="10.15.1")
    smaller = override_engine(
        recipe, max_keep_ratio=(0.5, 0.25), profiles="two",
        max_prompt_tokens=64, opt_prompt_tokens=32, max_visual_tokens=256, max_cache_capacity=400,
    )  # fmt: skip
    build(bundle, smaller)
    capacities = [job.fixed_dims for job in builder.jobs]
    assert capacities[0] == {}
    sizes = [each["cache_capacity"] for each in capacities[1:]]
    assert sizes[0] > sizes[1] > sizes[2] > 1
    for job, size in zip(builder.jobs[1:], sizes, strict=True):
        for profile in job.profiles:
            (span,) = {r for n, r in profile.inputs.items() if n.startswith("past_key_values.")}
            assert {span.min[2], span.opt[2], span.max[2]} == {size}
        assert job.model.endswith(".opset24.onnx")
    _, document = describe_build(bundle, smaller, target="orin-nano-8gb")
    command = document.engines[1].command
    assert f"--dim_param cache_capacity --dim_value {sizes[0]} {builder.jobs[1].model} " in command
    assert " && polygraphy convert " in command
    build(bundle, override_engine(smaller, opset="23"))
    assert [job.fixed_dims for job in builder.jobs[4:]] == [{}] * 4


def test_caches_that_grow_are_counted_twice(
    bundle: Bundle, recipe: EngineRecipe, builder: FakeBuilder
) -> None:
    builder.environment = msgspec.structs.replace(JETPACK_6, tensorrt_version="10.15.1")
    sizes = []
    for opset in ("23", "24"):
        _, document = describe_build(bundle, override_engine(recipe, opset=opset), target="t")
        sizes.append(document.engines[1].memory.cache_mib)
    assert sizes[0] == pytest.approx(2 * sizes[1], abs=0.1)


def test_a_form_that_this_tensorrt_cannot_read(
    bundle: Bundle, recipe: EngineRecipe, builder: FakeBuilder
) -> None:
    with pytest.raises(BuildError, match="with --opset 23 reads none of these"):
        build(bundle, override_engine(recipe, opset="23"))


@pytest.mark.parametrize(("version", "strips"), [("10.3.0", True), ("10.13.3", False)])
def test_a_plugin_goes_to_the_pruned_segments(
    bundle: Bundle, recipe: EngineRecipe, builder: FakeBuilder, tmp_path: Path, version: str,
    *, strips: bool,
) -> None:  # fmt: skip
    library = tmp_path / "libplugin.so"
    library.write_bytes(b"code")
    builder.environment = msgspec.structs.replace(JETPACK_6, tensorrt_version=version)
    report = build(bundle, recipe, plugin=library)
    assert [engine.plugin for engine in report.engines] == [
        None, "libplugin.so", "libplugin.so", None,
    ]  # fmt: skip
    assert [job.strip_functions for job in builder.jobs] == [False, strips, strips, False]
    assert (Path(report.engines[1].path).parent / "libplugin.so").read_bytes() == b"code"
    library.write_bytes(b"other code")
    again = build(bundle, recipe, plugin=library)
    assert [engine.is_new for engine in again.engines] == [False, True, True, False]


@pytest.mark.parametrize(
    ("device", "text"),
    [
        (None, "none was found here; run this command on the device"),
        (
            Device(name="Thor", compute_capability="11.0", cuda_version="13.0"),
            "Thor has compute capability 11.0, but target orin-nano-8gb is for 8.7",
        ),
    ],
)
def test_a_gpu_that_is_not_the_targets(
    bundle: Bundle, recipe: EngineRecipe, builder: FakeBuilder, device: Device | None, text: str
) -> None:
    builder.environment = Environment(tensorrt_version="10.3.0", device=device)
    with pytest.raises(BuildError, match=text):
        build(bundle, recipe)


def test_rtx_needs_no_gpu(bundle: Bundle, builder: FakeBuilder) -> None:
    builder.environment = NOTHING
    report = build_engines(bundle, load_engine_recipe("rtx"), target="rtx")
    assert {engine.opset for engine in report.engines} == {24}
    assert builder.jobs[0].compute_capabilities == ("7.5", "8.0", "8.6", "8.9", "12.0")
    assert builder.jobs[0].timing_cache is None


def test_a_dry_run_plans_for_the_target(
    bundle: Bundle, recipe: EngineRecipe, builder: FakeBuilder
) -> None:
    builder.environment = NOTHING
    text, document = describe_build(bundle, recipe, target="orin-nano-8gb")
    assert not builder.jobs
    assert document.tensorrt_version == "10.3"
    assert "tensorrt 10.3, that the target expects" in text
    assert "num_kept: min [1]" in text
    assert "polygraphy convert" in document.engines[0].command
    assert document.engines[1].memory.cache_mib > 0


def test_a_dry_run_says_when_memory_will_not_do(bundle: Bundle, builder: FakeBuilder) -> None:
    tight = EngineRecipe(shared_memory_mib=100, compute_capabilities=("8.7",))
    _, document = describe_build(bundle, tight, target="tight")
    assert any("is more than the 100 MiB" in note for note in document.notes)


def test_a_note_about_precision(
    bundles: BundleFactory, recipe: EngineRecipe, builder: FakeBuilder
) -> None:
    fp32 = bundles(num_layers=4).bundle
    _, document = describe_build(fp32, recipe, target="t")
    assert any("the bundle is fp32; fp16 suits" in note for note in document.notes)


def test_what_was_built_opens_on_the_machine_that_built_it(
    bundle: Bundle, recipe: EngineRecipe, builder: FakeBuilder
) -> None:
    build(bundle, recipe)
    assert JETPACK_6.device is not None
    here = {
        "backend": "tensorrt",
        "tensorrt_version": JETPACK_6.tensorrt_version,
        "device_name": JETPACK_6.device.name,
        "compute_capability": JETPACK_6.device.compute_capability,
    }
    for spec in (bundle.vision_encoder, *bundle.decoders):
        record = read_record(bundle.path, "orin-nano-8gb", spec.name)
        check_fit(record, bundle, spec, **here)
        with pytest.raises(BackendError, match="tensorrt_version is .* rebuild it with: feather"):
            check_fit(record, bundle, spec, **here | {"tensorrt_version": "10.13.3"})


def test_an_engine_built_anywhere_opens_on_the_gpus_it_is_for(
    bundle: Bundle, builder: FakeBuilder
) -> None:
    builder.environment = NOTHING
    build_engines(bundle, load_engine_recipe("rtx"), target="rtx")
    spec = bundle.decoders[0]
    record = read_record(bundle.path, "rtx", spec.name)
    here = {"backend": "tensorrt-rtx", "tensorrt_version": record.tensorrt_version}
    check_fit(record, bundle, spec, device_name="any", compute_capability="8.9", **here)
    with pytest.raises(BackendError, match="compute_capabilities is 7.5, .* in its record, but 9"):
        check_fit(record, bundle, spec, device_name="H100", compute_capability="9.0", **here)
