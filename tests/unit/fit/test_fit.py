"""``fit``: what it adds up, what it holds that against, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shipped import CHECKPOINT

from feather_edge.cli import main
from feather_edge.errors import CheckpointError, FitError, RecipeError
from feather_edge.fit import fit, require_fit
from feather_edge.fit.budget import Machine
from feather_edge.fit.report import verdict_of
from feather_edge.recipes import EngineRecipe, ExportRecipe, load_engine_recipe

if TYPE_CHECKING:
    from support.bundles import BundleFactory

    from feather_edge.fit import FitReport

ROOMY = Machine(memory_mib=1e6, disk_mib=1e6)
TARGET = "orin-nano-8gb"


def peaks(report: FitReport) -> dict[str, float]:
    return {stage.name: stage.peak_mib for stage in report.stages}


def limits(text: int, visual: int, answer: int) -> dict[str, Any]:
    return {
        "max_prompt_tokens": text,
        "opt_prompt_tokens": text,
        "max_visual_tokens": visual,
        "max_cache_capacity": text + visual + answer,
    }


@pytest.fixture(scope="module")
def config_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint as it is before its weights are downloaded."""
    folder = tmp_path_factory.mktemp("planned") / "model"
    ignored = shutil.ignore_patterns("*.safetensors")
    return Path(shutil.copytree(CHECKPOINT, folder, ignore=ignored))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_what_is_planned_is_what_an_export_makes(bundles: BundleFactory, precision: Any) -> None:
    made = bundles(recipe=ExportRecipe(precision=precision), num_layers=4)
    planned = fit(made.checkpoint, recipe=ExportRecipe(precision=precision), machine=ROOMY)
    real = fit(made.bundle, machine=ROOMY)
    assert planned.graphs == real.graphs
    assert peaks(planned)["run"] == peaks(real)["run"]
    on_disk = sum(file.num_bytes for file in made.bundle.manifest.files.values()) / 2**20
    weights = made.bundle.manifest.files["onnx/decoder_0.onnx_data"].num_bytes / 2**20
    assert planned.disk.bundle_mib > weights
    assert planned.disk.bundle_mib < on_disk < planned.disk.bundle_mib + 2
    assert real.disk.bundle_mib == 0
    assert "export" in peaks(planned)
    assert "export" not in peaks(real)


def test_a_config_is_enough(config_only: Path) -> None:
    planned, real = (fit(folder, machine=ROOMY) for folder in (config_only, CHECKPOINT))
    assert not list(config_only.glob("*.safetensors"))
    assert planned.graphs == real.graphs
    # Where nothing says in which type weights lie, the largest type is taken.
    assert peaks(planned)["export"] >= peaks(real)["export"]


def test_no_weight_is_read(config_only: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CHECKPOINT, tmp_path / "model"))
    for file in folder.glob("*.safetensors"):
        raw = file.read_bytes()
        header = 8 + int.from_bytes(raw[:8], "little")
        file.write_bytes(raw[:header] + b"\xff" * (len(raw) - header))
    assert fit(folder, machine=ROOMY).graphs == fit(CHECKPOINT, machine=ROOMY).graphs


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 600), st.integers(196, 900), st.integers(1, 400)),
    more=st.integers(1, 300),
    which=st.integers(0, 2),
    target=st.sampled_from([None, TARGET]),
)
def test_more_tokens_never_take_less(
    sizes: tuple[int, int, int], more: int, which: int, target: str | None
) -> None:
    grown = tuple(size + more * (number == which) for number, size in enumerate(sizes))
    before, after = (
        fit(CHECKPOINT, target=target, limits=limits(*given), machine=ROOMY)
        for given in (sizes, grown)
    )
    for stage, peak in peaks(before).items():
        assert peaks(after)[stage] >= peak


def test_narrower_weights_never_take_more(config_only: Path) -> None:
    sizes = []
    for precision in ("fp32", "fp16", "int8", "int4"):
        floats: Any = "fp16" if precision.startswith("int") else None
        recipe = ExportRecipe(precision=precision, activations=floats)  # type: ignore[arg-type]
        report = fit(config_only, target=TARGET, recipe=recipe, machine=ROOMY)
        weights = sum(sum(graph.weights_mib.values()) for graph in report.graphs)
        sizes.append((weights, peaks(report)["run"], report.disk.engines_mib))
    assert sizes == sorted(sizes, reverse=True)
    for column in zip(*sizes, strict=True):
        assert list(column) == sorted(column, reverse=True)


def test_more_jobs_and_more_profiles_take_more() -> None:
    def build(**options: Any) -> float:
        return peaks(fit(CHECKPOINT, target=TARGET, machine=ROOMY, **options))["build"]

    assert build(jobs=2) > build(jobs=1)
    assert build(limits={"profiles": "two"}) > build(limits={"profiles": "one"})


def test_fewer_kept_tokens_take_less() -> None:
    all_kept = fit(CHECKPOINT, target=TARGET, machine=ROOMY)
    half = fit(CHECKPOINT, target=TARGET, limits={"max_keep_ratio": (0.5,)}, machine=ROOMY)
    assert half.graphs[1].cache_mib == all_kept.graphs[1].cache_mib  # before the first stage
    assert half.graphs[2].cache_mib < all_kept.graphs[2].cache_mib
    assert half.graphs[3].rows < all_kept.graphs[3].rows


def test_a_verdict_is_tight_where_the_error_of_an_estimate_decides() -> None:
    assert verdict_of(100, 120) == "fits"
    assert verdict_of(100, 119.9) == "tight"
    assert verdict_of(100, 100) == "tight"
    assert verdict_of(100, 99.9) == "does not fit"
    assert verdict_of(100, None) == "fits"


def test_a_target_gives_what_its_system_leaves() -> None:
    recipe = load_engine_recipe(TARGET)
    report = fit(CHECKPOINT, target=TARGET, machine=Machine(memory_mib=1, disk_mib=1))
    assert recipe.shared_memory_mib is not None
    left = recipe.shared_memory_mib - recipe.system_memory_mib
    assert {stage.available_mib for stage in report.stages} == {left}
    assert report.verdict == "fits"
    assert report.disk.available_mib is None  # it is another machine's


def test_a_gpu_of_its_own_has_memory_that_no_one_knows() -> None:
    report = fit(CHECKPOINT, target="rtx", machine=Machine(memory_mib=100, disk_mib=1e6))
    assert [stage.available_mib for stage in report.stages] == [100, 100, None]
    assert [stage.verdict for stage in report.stages][1:] == ["does not fit", "fits"]
    assert "memory of its own" in report.notes[0]


def test_advice_carries_its_own_numbers() -> None:
    tight = load_engine_recipe(TARGET)
    tight = EngineRecipe(
        **{name: getattr(tight, name) for name in tight.__struct_fields__}
        | {"shared_memory_mib": 700, "system_memory_mib": 50, "profiles": "two"}
    )
    report = fit(CHECKPOINT, target=TARGET, engine_recipe=tight, jobs=2, machine=ROOMY)
    assert report.verdict == "does not fit"
    options = {advice.options: advice for advice in report.advice}
    alone = fit(CHECKPOINT, target=TARGET, engine_recipe=tight, jobs=1, machine=ROOMY)
    assert options["--jobs 1"].peak_mib == max(peaks(alone)["build"], peaks(alone)["run"])
    assert [a.peak_mib for a in report.advice] == sorted(a.peak_mib for a in report.advice)


def test_swap_is_advised_for_a_build_alone() -> None:
    board = EngineRecipe(shared_memory_mib=1100, pool_limit=("workspace:1G",), profiles="one")
    report = fit(CHECKPOINT, target=TARGET, engine_recipe=board, machine=ROOMY)
    stages = {stage.name: stage.verdict for stage in report.stages}
    assert stages["build"] == "does not fit"
    assert stages["run"] != "does not fit"
    swap = report.advice[-1]
    assert swap.change == "1 GiB of swap, for the build only"
    assert "swapon" in swap.options
    assert swap.verdict == stages["run"]


def test_the_document_has_what_the_issue_names() -> None:
    document = json.loads(json.dumps(fit(CHECKPOINT, target=TARGET, machine=ROOMY).to_dict()))
    assert document["target"] == TARGET
    assert document["verdict"] in {"fits", "tight", "does not fit"}
    assert [stage["name"] for stage in document["stages"]] == ["export", "build", "run"]
    for stage in document["stages"]:
        assert stage["peak_mib"] == pytest.approx(sum(stage["parts"].values()), abs=0.3)
    assert document["advice"] == []


def test_what_does_not_fit_is_refused_unless_forced() -> None:
    small = Machine(memory_mib=120, disk_mib=1e6)
    with pytest.raises(FitError) as caught:
        require_fit(CHECKPOINT, force=False, machine=small)
    text = str(caught.value)
    assert text.startswith(f"{CHECKPOINT} does not fit this machine: run would peak at about ")
    assert "and there are 120 MiB free on this machine" in text
    assert text.endswith("go on all the same with --force")
    assert "\n" not in text
    assert require_fit(CHECKPOINT, force=True, machine=small).verdict == "does not fit"
    assert require_fit(CHECKPOINT, force=False, stages=("export",), machine=small).stages


def test_a_full_disk_is_refused() -> None:
    with pytest.raises(FitError, match=r"MiB of disk, and 5 MiB are free"):
        require_fit(CHECKPOINT, force=False, machine=Machine(memory_mib=1e6, disk_mib=5))


def test_what_cannot_be_read_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config.json"):
        fit(tmp_path)
    with pytest.raises(RecipeError, match=r"no engines recipe|nowhere"):
        fit(CHECKPOINT, target="nowhere")
    with pytest.raises(RecipeError, match="system_memory_mib is 10; .* less than"):
        EngineRecipe(shared_memory_mib=10, system_memory_mib=10)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command_prints_one_document_or_tables() -> None:
    result = run("fit", "demo", "--target", TARGET, "--json", "--max-prompt-tokens", "64")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["limits"]["max_prompt_tokens"] == 64
    text = run("fit", "demo", "--target", TARGET, "--precision", "fp16").stdout
    for part in (f"demo on {TARGET}: fits", "decoder_2", "float16", "KV cache", "disk: bundle"):
        assert part in text


def test_export_refuses_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "feather_edge.fit.fitting.this_machine", lambda _: Machine(memory_mib=50, disk_mib=1e6)
    )
    output = tmp_path / "bundle"
    result = run("export", "demo", "-o", output)
    assert result.exit_code == 1
    assert "demo does not fit this machine: export would peak at about" in result.stderr
    assert not output.exists()
    forced = run("export", "demo", "-o", output, "--force")
    assert forced.exit_code == 0, forced.output
    assert "note: export is does not fit" not in forced.stderr
    assert "note: export does not fit: about" in forced.stderr


def test_build_engine_refuses_before_it_starts(bundles: BundleFactory) -> None:
    bundle = bundles(recipe=ExportRecipe(precision="fp16"), num_layers=4).bundle.path
    arguments = ("build-engine", bundle, "--target", TARGET, "--shared-memory-mib", 2000)
    result = run(*arguments, "--system-memory-mib", 1900)
    assert result.exit_code == 1
    assert f"{bundle} does not fit {TARGET}: build would peak at about" in result.stderr
    assert "with --force" in result.stderr
    assert not (bundle / "engines").exists()
    forced = run(*arguments, "--system-memory-mib", 1900, "--force")
    assert "does not fit: about" in forced.stderr
    assert "would peak" not in forced.stderr  # there is no TensorRT here, which is another matter


def test_integer_weights_are_in_an_engine_once() -> None:
    recipe = ExportRecipe(precision="int8", activations="fp16")
    one, two = (
        fit(CHECKPOINT, target="rtx", recipe=recipe, limits={"profiles": profiles}, machine=ROOMY)
        for profiles in ("one", "two")
    )
    sizes = [graph.weights_mib for graph in one.graphs[1:]]
    assert all(weights["int8"] > 0 for weights in sizes)
    floats = sum(size for weights in sizes for kind, size in weights.items() if kind != "int8")
    assert two.disk.engines_mib - one.disk.engines_mib == pytest.approx(floats, abs=0.5)


def test_a_calibration_takes_what_its_float_run_takes(config_only: Path) -> None:
    peaks_of = {}
    for precision in ("fp32", "int8", "int8-dynamic"):
        recipe = ExportRecipe(precision=precision)  # type: ignore[arg-type]
        report = fit(config_only, recipe=recipe, machine=ROOMY)
        peaks_of[precision] = peaks(report) | report.stages[0].parts
    dynamic = peaks_of["int8-dynamic"]
    assert dynamic["probes"] > 0
    assert dynamic["export"] > peaks_of["int8"]["export"] + dynamic["probes"]
    weights = fit(config_only, recipe=ExportRecipe(), machine=ROOMY).stages[-1].parts["weights"]
    assert dynamic["weights"] == pytest.approx(weights, abs=0.2)


def test_causal_float32_decoders_hold_no_scores(config_only: Path) -> None:
    def scores(precision: Any, text: int) -> float:
        recipe = ExportRecipe(precision=precision)
        report = fit(config_only, recipe=recipe, limits=limits(text, 196, 100), machine=ROOMY)
        return report.stages[-1].parts["attention scores"]

    assert scores("fp32", 400) == scores("fp32", 50)  # of the vision encoder alone
    assert scores("fp16", 400) > scores("fp16", 50)


def test_a_hub_id_fetches_no_weights(
    config_only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fnmatch
    import types

    fetched: list[str] = []

    def snapshot_download(repo_id: str, *, allow_patterns: list[str]) -> str:
        assert repo_id == "someone/scene-vlm"
        for file in CHECKPOINT.iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                fetched.append(file.name)
                shutil.copyfile(file, tmp_path / file.name)
        return str(tmp_path)

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.chdir(tmp_path.parent)
    report = fit("someone/scene-vlm", target=TARGET, machine=ROOMY)
    assert {"config.json", "preprocessor_config.json"} <= set(fetched)
    assert {Path(name).suffix for name in fetched} <= {".json", ".jinja"}
    assert report.graphs == fit(config_only, target=TARGET, machine=ROOMY).graphs


def test_no_tensorrt_is_named_for_what_none_reads(bundles: BundleFactory) -> None:
    for precision, is_read in (("int8-dynamic", False), ("int8", True)):
        recipe = ExportRecipe(precision=precision)  # type: ignore[arg-type]
        bundle = bundles(recipe=recipe, num_layers=4).bundle
        manifest = json.loads((bundle.path / "manifest.json").read_text(encoding="utf-8"))
        forms = [form for graph in manifest["graphs"] for form in graph["forms"]]
        assert all((form["tensorrt"] == "none") != is_read for form in forms)
        graphs = json.loads(run("inspect", bundle.path, "--json").stdout)["graphs"]
        named = {form["tensorrt"] for graph in graphs for form in graph["forms"]}
        assert (named == {"none"}) != is_read
