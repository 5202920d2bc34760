"""Real engines by TensorRT-RTX, which needs no GPU: every graph, and what must not build."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner
from measure_builder_peak import SIZES, write_checkpoint
from support.edits import edited_checkpoint
from support.engines import job_for, profile_of
from support.packed import declare, pack_linears
from support.shipped import CHECKPOINT

from feather_edge.bundle import Bundle
from feather_edge.cli import main
from feather_edge.engine_record import read_record
from feather_edge.engines.build import build_engines
from feather_edge.engines.process import describe_environment, run_job
from feather_edge.errors import BuildError
from feather_edge.export.pipeline import export
from feather_edge.recipes import EngineRecipe, ExportRecipe, load_engine_recipe, override_engine

if TYPE_CHECKING:
    from support.bundles import BundleFactory

    from feather_edge.engines.jobs import EngineResult

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None, reason="needs the extra rtx"
    ),
]

GRAPHS = ["vision_encoder", "decoder_0", "decoder_1", "decoder_2"]


def rtx(**options: Any) -> EngineRecipe:
    """Return the target rtx for one GPU, built as fast as can be."""
    quick = {"compute_capabilities": ("8.6",), "builder_optimization_level": 0}
    return override_engine(load_engine_recipe("rtx"), **(quick | options))


def own(shared: Bundle, folder: Path) -> Bundle:
    """Return a copy to put engines into: other tests open the shared bundle."""
    return Bundle.open(shutil.copytree(shared.path, folder / "bundle"))


@pytest.fixture(scope="module")
def bundle(bundles: BundleFactory, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The shipped model in fp16 and both opsets."""
    shared = bundles.export(CHECKPOINT, recipe=ExportRecipe(precision="fp16")).bundle
    return own(shared, tmp_path_factory.mktemp("engines"))


def test_what_is_installed_here() -> None:
    environment = describe_environment("tensorrt-rtx")
    assert environment.tensorrt_version.startswith("1.")


@pytest.mark.parametrize("opset", ["18", "23", "24"])
def test_every_graph_of_the_shipped_model_builds(bundle: Bundle, opset: str) -> None:
    report = build_engines(bundle, rtx(opset=opset), target=f"rtx-{opset}")
    assert [engine.graph for engine in report.engines] == GRAPHS
    for engine in report.engines:
        assert engine.opset == int(opset)
        assert Path(engine.path).stat().st_size == engine.bytes > 100_000
        assert engine.peak_rss_mib > 50
        record = read_record(bundle.path, f"rtx-{opset}", engine.graph)
        assert record.device_name is None
        assert record.compute_capabilities == ("8.6",)


def test_for_every_gpu_of_the_target_and_with_one_profile(bundle: Bundle) -> None:
    capabilities = load_engine_recipe("rtx").compute_capabilities
    recipe = rtx(compute_capabilities=capabilities, profiles="one")
    report = build_engines(bundle, recipe, target="rtx-all")
    assert [engine.is_new for engine in report.engines] == [True] * 4


def test_float32_builds_too(bundles: BundleFactory, tmp_path: Path) -> None:
    """Attention has no fused kernel there, so it is made decomposable."""
    fp32 = own(bundles(num_layers=4).bundle, tmp_path)
    for opset in ("18", "23", "24"):
        report = build_engines(fp32, rtx(opset=opset), target=f"rtx-{opset}")
        assert len(report.engines) == 4


def test_float32_for_turing_says_what_to_do(bundles: BundleFactory, tmp_path: Path) -> None:
    fp32 = own(bundles(num_layers=4).bundle, tmp_path)
    with pytest.raises(BuildError, match="export with --precision fp16"):
        build_engines(fp32, rtx(compute_capabilities=("7.5",)), target="turing")


@pytest.mark.parametrize("opset", ["18", "23", "24"])
def test_a_decoder_of_realistic_width(tmp_path: Path, opset: Literal["18", "23", "24"]) -> None:
    """D = 1536, 12 heads on 2, MLP of 8960, 4 layers in 2 segments; a few seconds an engine."""
    checkpoint = write_checkpoint(CHECKPOINT, tmp_path / "c", SIZES | {"num_hidden_layers": 4})
    recipe = ExportRecipe(precision="fp16", stages=(2,), opset=opset)
    wide = export(checkpoint, tmp_path / "bundle", recipe)
    report = build_engines(wide, rtx(), target="rtx")
    for engine, num_bytes in zip(report.engines[1:], decoder_bytes(wide), strict=True):
        assert engine.bytes > num_bytes > 150 * 2**20


def test_a_decoder_of_realistic_width_in_int4(tmp_path: Path) -> None:
    """8 layers. Weights stay int4 in the engine, which is as small as they are."""
    checkpoint = write_checkpoint(CHECKPOINT, tmp_path / "c", SIZES)
    recipe = ExportRecipe(precision="int4", activations="fp16", stages=(4,))
    wide = export(checkpoint, tmp_path / "bundle", recipe)
    report = build_engines(wide, rtx(), target="rtx")
    for engine, num_bytes in zip(report.engines[1:], decoder_bytes(wide), strict=True):
        assert 80 * 2**20 < num_bytes < 110 * 2**20
        assert engine.bytes < 1.3 * num_bytes


def decoder_bytes(bundle: Bundle) -> list[int]:
    return [bundle.manifest.files[spec.weights_file].num_bytes for spec in bundle.decoders]


@pytest.mark.parametrize(
    "precision",
    [
        {"precision": "int4", "activations": "fp16"},
        {"precision": "int8", "activations": "bf16", "block_size": 128},
        {"precision": "bf16"},
    ],
    ids=lambda precision: " ".join(map(str, precision.values())),
)  # fmt: skip
def test_the_shipped_model_builds_in_every_precision(
    bundles: BundleFactory, tmp_path: Path, precision: dict[str, Any]
) -> None:
    bundle = own(bundles.export(CHECKPOINT, recipe=ExportRecipe(**precision)).bundle, tmp_path)
    report = build_engines(bundle, rtx(), target="rtx")
    assert [engine.graph for engine in report.engines] == GRAPHS
    assert {engine.opset for engine in report.engines} <= {23, 24}


def test_a_quantised_checkpoint_builds(bundles: BundleFactory, tmp_path: Path) -> None:
    """With zero points, which TensorRT itself has none of."""
    packed = edited_checkpoint(
        bundles.checkpoint(num_layers=4),
        tmp_path / "packed",
        tensors=lambda t: pack_linears(t, "awq", is_symmetric=False),
        config=lambda c: c.update(quantization_config=declare("awq")),
    )
    recipe = ExportRecipe(precision="int4", activations="fp16")
    report = build_engines(export(packed, tmp_path / "bundle", recipe), rtx(), target="rtx")
    assert len(report.engines) == 4


def test_dynamic_int8_is_for_cpus(bundles: BundleFactory, tmp_path: Path) -> None:
    bundle = own(
        bundles(recipe=ExportRecipe(precision="int8-dynamic"), num_layers=4).bundle, tmp_path
    )
    with pytest.raises(BuildError, match="holds int8-dynamic graphs, .* --precision int8 or int4"):
        build_engines(bundle, rtx(), target="rtx")


def test_the_file_on_disk_leaves_the_capacity_open(bundle: Bundle, tmp_path: Path) -> None:
    """TensorRT is told it on the way, and would read no other graph."""
    limits = {"max_prompt_tokens": 100, "max_visual_tokens": 256, "max_cache_capacity": 700}
    build_engines(bundle, rtx(opset="24", **limits), target="rtx-700")
    Bundle.open(bundle.path)  # nothing was changed or added
    record = read_record(bundle.path, "rtx-700", "decoder_1")
    caches = {n: r for n, r in record.profiles[0].inputs.items() if "past_key_values" in n}
    assert {span.max[2] for span in caches.values()} == {700}
    (form,) = (form for form in bundle.decoders[1].forms if form.opset == 24)
    job = job_for(
        bundle.path / form.file, *record.profiles,
        engine=str(tmp_path / "engine"), result=str(tmp_path / "result"),
    )  # fmt: skip
    with pytest.raises(BuildError, match="must have a static sequence length .*--opset 23"):
        run_job(job, log=tmp_path / "log", timeout_s=120, on_phase=None)


def test_the_command(bundle: Bundle) -> None:
    arguments = ["build-engine", str(bundle.path), "--target", "rtx"]
    quick = ["--compute-capabilities", "8.6", "--builder-optimization-level", "0", "--jobs", "2"]
    first = CliRunner().invoke(main, [*arguments, *quick])
    assert first.exit_code == 0, first.output
    assert first.stdout.count("opset 24") == 4
    again = CliRunner().invoke(main, [*arguments, *quick, "--json"])
    assert '"is_new":false' in again.stdout
    assert '"is_new":true' not in again.stdout


@pytest.mark.filterwarnings("ignore")  # TensorRT's own, within native code
def test_float32_stays_float32_and_phases_are_reported(bundle: Bundle, tmp_path: Path) -> None:
    """The builder in this process, once: what workers do is otherwise out of sight."""
    from feather_edge.engines._tensorrt import build_engine
    from feather_edge.engines.jobs import Environment
    from feather_edge.engines.plan import plan_engines

    environment = Environment(tensorrt_version="1.7.1.116", device=None)
    plan = plan_engines(bundle, rtx(opset="23"), environment, target="here", plugin=None)[1]
    log = tmp_path / "log"
    phases: list[str] = []

    def on_phase(phase: str, num_done: int, num_steps: int) -> None:
        assert 0 <= num_done <= num_steps or num_steps == 0
        phases.append(phase)

    job = msgspec.structs.replace(plan.job, engine=str(tmp_path / "e"), result=str(tmp_path / "r"))
    run_job(job, log=log, timeout_s=120, on_phase=None)
    flags = next(line for line in log.read_text().splitlines() if "Flags " in line)
    assert "STRONGLY_TYPED" in flags
    assert "TF32" not in flags
    assert build_engine(job, on_phase=on_phase) > 0
    assert phases


# What must not build. Each is a model in ONNX's text form.


def model(tmp_path: Path, name: str, text: str, *, opset: int = 18, imports: str = "") -> Path:
    header = f'<ir_version: 10, opset_import: ["" : {opset}{imports}]>\n'
    file = tmp_path / f"{name}.onnx"
    onnx.save(onnx.parser.parse_model(header + text), file)
    return file


def build(file: Path, **inputs: Any) -> EngineResult:
    return run_job(
        job_for(file, profile_of(**inputs)),
        log=file.with_suffix(".log"), timeout_s=120, on_phase=None,
    )  # fmt: skip


def same(*shape: int) -> tuple[tuple[int, ...], ...]:
    return (shape, shape, shape)


def test_the_negative_tests_can_pass(tmp_path: Path) -> None:
    file = model(tmp_path, "fine", "g (float[4] x) => (float[4] y) { y = Relu(x) }")
    assert build(file, x=same(4)).peak_rss_mib > 50


def test_a_profile_below_a_static_k(tmp_path: Path) -> None:
    text = "g (float[n] x) => (float[3] y) <int64[1] k = {3}> { y, i = TopK(x, k) }"
    with pytest.raises(BuildError, match="not self-consistent.*--dry-run prints every profile"):
        build(model(tmp_path, "static_k", text), x=((1,), (8,), (9,)))


def test_a_k_that_is_too_large(tmp_path: Path) -> None:
    text = "g (float[n] x) => (float[k] y) <int64[1] k = {4000}> { y, i = TopK(x, k) }"
    with pytest.raises(BuildError, match="keeps at most 3840 rows; lower --max-visual-tokens"):
        build(model(tmp_path, "big_k", text), x=same(5000))


def test_limits_that_need_a_larger_k_are_refused_before_anything_is_built(
    bundle: Bundle, tmp_path: Path
) -> None:
    large = rtx(max_visual_tokens=8000, max_cache_capacity=16000)
    # The shipped model ends at 1024 positions; this is about one that does not.
    from feather_edge.bundle import Bundle as AnyBundle

    manifest = msgspec.structs.replace(bundle.manifest, max_positions=32768)
    longer = AnyBundle(path=bundle.path, manifest=manifest)
    with pytest.raises(BuildError, match="TensorRT's TopK keeps at most 3840"):
        build_engines(longer, large, target="large")


def test_an_input_that_would_be_dropped(tmp_path: Path) -> None:
    text = (
        "g (float16[1,2,s,64] q, float16[1,2,s,64] k, float16[1,2,s,64] v, int64[1] lens) => "
        "(float16[1,2,s,64] y) { y = Attention(q, k, v, , , , lens) }"
    )
    heads = ((1, 2, 1, 64), (1, 2, 8, 64), (1, 2, 16, 64))
    file = model(tmp_path, "unused", text, opset=24)
    with pytest.raises(BuildError, match="Unused Input: lens; TensorRT drops an input"):
        build(file, q=heads, k=heads, v=heads, lens=same(1))


def test_an_operator_that_nobody_knows(tmp_path: Path) -> None:
    text = "g (float[4] x) => (float[4] y) { y = other.Mystery(x) }"
    file = model(tmp_path, "custom", text, imports=', "other" : 1')
    with pytest.raises(BuildError, match="Mystery.*Plugin not found.*--plugin LIB"):
        build(file, x=same(4))


def test_types_that_do_not_match(tmp_path: Path) -> None:
    text = "g (float[4] x, float16[4] z) => (float[4] y) { y = Add(x, z) }"
    with pytest.raises(BuildError, match="a cast is missing in the graph"):
        build(model(tmp_path, "mixed", text), x=same(4), z=same(4))


def test_a_type_that_the_gpu_lacks(tmp_path: Path) -> None:
    text = (
        "g (float[16,32] x) => (float[16,32] y) <float s = {1.0}> "
        "{ q = QuantizeLinear <output_dtype = 17> (x, s) y = DequantizeLinear(q, s) }"
    )
    with pytest.raises(BuildError, match="fp8_e4m3.*this GPU lacks a data type"):
        build(model(tmp_path, "fp8", text, opset=21), x=same(16, 32))


def test_a_jetson_cannot_be_built_for_elsewhere(tmp_path: Path) -> None:
    file = model(tmp_path, "jetson", "g (float[4] x) => (float[4] y) { y = Relu(x) }")
    with pytest.raises(BuildError, match="build on the device itself"):
        run_job(
            job_for(file, profile_of(x=same(4)), compute_capabilities=("8.7",)),
            log=tmp_path / "log", timeout_s=120, on_phase=None,
        )  # fmt: skip


def test_functions_can_be_cut(bundle: Bundle, tmp_path: Path) -> None:
    """Without function and without plugin the op is unknown: so the function was really gone."""
    from feather_edge.engines.jobs import Environment
    from feather_edge.engines.plan import plan_engines

    environment = Environment(tensorrt_version="1.7.1.116", device=None)
    plan = plan_engines(bundle, rtx(opset="18"), environment, target="stripped", plugin=None)[1]
    job = msgspec.structs.replace(
        plan.job,
        engine=str(tmp_path / "e"), result=str(tmp_path / "r.result"), strip_functions=True,
    )  # fmt: skip
    with pytest.raises(BuildError, match="prune/top_k_uniform_gather.*Plugin not found"):
        run_job(job, log=tmp_path / "log", timeout_s=120, on_phase=None)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["log", "r.job"]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a compiler")
def test_a_library_that_holds_no_plugin(bundle: Bundle, tmp_path: Path) -> None:
    """The function would be taken instead, and nobody would notice."""
    source, library = tmp_path / "empty.c", tmp_path / "libempty.so"
    source.write_text("int nothing(void) { return 0; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    with pytest.raises(BuildError, match="did not take the plugin of .*libempty.so for decoder_0"):
        build_engines(bundle, rtx(), target="empty", plugin=library)
    left = (bundle.path / "engines" / "empty").iterdir()
    assert sorted(file.name for file in left) == [
        "decoder_0.log", "vision_encoder.engine", "vision_encoder.json", "vision_encoder.log",
    ]  # fmt: skip
