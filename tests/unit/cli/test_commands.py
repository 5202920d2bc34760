"""What each command hands to its main function, and what it prints of the answer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from feather_edge.cli import main
from feather_edge.cli.doctor import describe_platform
from feather_edge.doctor import Loading
from feather_edge.errors import CheckpointError
from feather_edge.export import pipeline
from feather_edge.platform_facts import read_platform
from feather_edge.pruning import Pruning, Region
from feather_edge.recipes import ExportRecipe, load_recipe
from feather_edge.runtime.receipt import Verification
from feather_edge.runtime.sampling import Sampling
from feather_edge.runtime.session import Session

PICTURE = b"bytes of a picture"
VERIFIED = Verification(state="verified", reason="against transformers")


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "a.png").write_bytes(PICTURE)
    return CliRunner()


def succeed(runner: CliRunner, *arguments: str, **options: Any) -> str:
    result = runner.invoke(main, arguments, catch_exceptions=False, **options)
    assert result.exit_code == 0, result.output
    answers = arguments[0] == "run" and "--json" not in arguments
    assert result.stderr == (f"{VERIFIED}\n" if answers else "")
    return result.stdout


# export


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """What `export` was called with."""
    calls = []

    def export(
        checkpoint: Path, output: Path, recipe: ExportRecipe, *, force: bool, on_progress: object
    ) -> SimpleNamespace:
        calls.append(SimpleNamespace(**locals()))
        stages = recipe.stages or ()
        files = {"a": SimpleNamespace(num_bytes=2**20), "b": SimpleNamespace(num_bytes=2**19)}
        return SimpleNamespace(
            manifest=SimpleNamespace(recipe=recipe, files=files),
            schedule=SimpleNamespace(stages=stages),
        )

    monkeypatch.setattr(pipeline, "export", export)
    # There is no checkpoint to be asked whether it fits.
    fits = SimpleNamespace(stages=())
    monkeypatch.setattr("feather_edge.fit.require_fit", lambda *_arguments, **_options: fits)
    return calls


def test_export_takes_the_paper_s_recipe(
    runner: CliRunner, exported: list[SimpleNamespace]
) -> None:
    out = succeed(runner, "export", "checkpoint", "-o", "b")
    (call,) = exported
    assert (call.checkpoint, call.output) == (Path("checkpoint"), Path("b"))
    assert call.recipe == load_recipe("feather")
    assert (call.force, call.on_progress) == (False, None)
    assert out == "b: 1.5 MiB, prunes before layers: none\n"


def test_export_options_beat_the_recipe(
    runner: CliRunner, exported: list[SimpleNamespace]
) -> None:
    line = (
        "export checkpoint --output b --recipe fastv --stages 4,6 --prune uniform "
        "--keep-ratio 0.5,0.25 --stride 2 --selection union --precision int8 --opset 23 --seed 9 "
        "--vision-precision fp16 --head-precision int4 --activations fp16 --block-size 128 "
        "--clipping mse --force"
    )
    out = succeed(runner, *line.split())
    (call,) = exported
    assert call.recipe == ExportRecipe(
        stages=(4, 6), prune="uniform", keep_ratio=(0.5, 0.25), stride=2, selection="union",
        precision="int8", opset="23", seed=9, vision_precision="fp16", head_precision="int4",
        activations="fp16", block_size=128, clipping="mse",
    )  # fmt: skip
    assert call.force
    assert out == "b: 1.5 MiB, prunes before layers: 4, 6\n"


def test_export_keeps_what_the_recipe_says(
    runner: CliRunner, exported: list[SimpleNamespace], tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text("stages = [3]\nkeep_ratio = [0.4]\nseed = 5\n")
    succeed(runner, "export", "checkpoint", "-o", "b", "--recipe", "mine.toml", "--seed", "0")
    assert exported[0].recipe == ExportRecipe(stages=(3,), keep_ratio=(0.4,), seed=0)


def test_export_unsplit(runner: CliRunner, exported: list[SimpleNamespace]) -> None:
    succeed(runner, "export", "checkpoint", "-o", "b", "--stages", "none")
    assert exported[0].recipe.stages == ()


def test_export_of_the_shipped_model_takes_its_own_recipe(
    runner: CliRunner, exported: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feather_edge.checkpoint.resolve_checkpoint", Path)
    succeed(runner, "export", "demo", "-o", "b")
    assert exported[0].recipe == load_recipe("scene-vlm")


def test_export_json(runner: CliRunner, exported: list[SimpleNamespace]) -> None:
    out = succeed(runner, "export", "checkpoint", "-o", "b", "--stages", "4,6", "--json")
    document = json.loads(out)
    assert document["bundle"] == "b"
    assert document["num_bytes"] == 1572864
    assert document["recipe"]["stages"] == [4, 6]


def test_export_checks_options_before_it_looks_for_the_checkpoint(
    runner: CliRunner, exported: list[SimpleNamespace]
) -> None:
    result = runner.invoke(main, ["export", "no-folder", "-o", "b", "--keep-ratio", "0.2,0.5"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: keep_ratio [0.2, 0.5] grows;")


def test_export_of_nothing_is_one_line(runner: CliRunner, exported: list[SimpleNamespace]) -> None:
    result = runner.invoke(main, ["export", "no-folder", "-o", "b"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: checkpoint 'no-folder' does not exist;")
    assert exported == []


def test_export_draws_progress_on_a_terminal_only(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from feather_edge.cli import _progress

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(_progress.sys.stderr, "isatty", lambda: True, raising=False)
    with _progress.progress_bar() as draw:
        assert draw is not None
        draw("decoder_0", 512, 1024)
    assert capfd.readouterr().out == ""
    monkeypatch.setattr(_progress.sys.stderr, "isatty", lambda: False, raising=False)
    with _progress.progress_bar() as draw:
        assert draw is None


# run


class FakeSession:
    """Answers "red cup", and remembers what it was asked."""

    def __init__(self) -> None:
        self.bundle = SimpleNamespace(path=Path("b"), schedule=SimpleNamespace(stages=(4, 6)))
        self.pruning = Pruning(keep_ratio=(0.5, 0.25), stride=2, seed=4)
        self.asked: dict[str, Any] = {}
        self.last_result: Any = None
        self.opened: tuple[Path, str, str | None] | None = None
        self.closed = False

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    notes = ()
    verification = VERIFIED

    def open(
        self, bundle: Path, *, backend: str, target: str | None, cuda_graphs: bool
    ) -> FakeSession:
        self.opened = (bundle, backend, target)
        return self

    def stream(self, images: list[Any], prompt: str, **options: Any) -> Any:
        self.asked = {"images": images, "prompt": prompt, **options}
        yield from (SimpleNamespace(text=text) for text in ("red", " cup"))

    def generate(self, images: list[Any], prompt: str, **options: Any) -> SimpleNamespace:
        text = "".join(token.text for token in self.stream(images, prompt, **options))
        return SimpleNamespace(to_dict=lambda: {"text": text, "stages": []})


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> FakeSession:
    fake = FakeSession()
    monkeypatch.setattr(Session, "open", fake.open)
    return fake


ASK = ("run", "b", "--image", "a.png", "--prompt", "what is it?")


def test_run_streams_the_answer(runner: CliRunner, session: FakeSession) -> None:
    assert succeed(runner, *ASK) == "red cup\n"
    assert session.opened == (Path("b"), "auto", None)
    assert session.closed
    assert session.asked == {
        "images": [Path("a.png")],
        "prompt": "what is it?",
        "pruning": session.pruning,
        "deadline_ms": None,
        "regions": (),
        "sampling": Sampling(),
        "max_new_tokens": None,
    }


def test_run_lays_options_over_the_bundle_s(runner: CliRunner, session: FakeSession) -> None:
    line = (
        "--prune ivc --keep-ratio 0.4 --selection union --seed 0 --temperature 0.5 "
        "--top-p 0.9 --max-new-tokens 7 --backend tensorrt --target orin --stages 4,6"
    )
    succeed(runner, *ASK, *line.split())
    assert session.opened == (Path("b"), "tensorrt", "orin")
    assert session.asked["pruning"] == Pruning(
        criterion="ivc", keep_ratio=(0.4,), stride=2, selection="union", seed=0
    )
    assert session.asked["sampling"] == Sampling(temperature=0.5, top_p=0.9, seed=0)
    assert session.asked["max_new_tokens"] == 7


def test_run_prunes_before_the_decoder(runner: CliRunner, session: FakeSession) -> None:
    succeed(runner, *ASK, "--pre-prune", "divprune", "--pre-keep-ratio", "0.25")
    assert session.asked["pruning"] == dataclasses.replace(
        session.pruning, pre_criterion="divprune", pre_keep_ratio=0.25
    )


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--pre-keep-ratio 0.25", "pre-keep-ratio 0.25 has no effect: nothing prunes before"),
        (
            "--prune fastv --stride 2",
            "stride 2 has no effect: criterion fastv has no grid; choose",
        ),
        ("--prune uniform --selection union", "selection union has no effect: criterion uniform"),
        ("--prune none --keep-ratio 0.5", "keep-ratio 0.5 has no effect: criterion none keeps"),
    ],
)
def test_an_option_without_effect_is_refused(
    runner: CliRunner, session: FakeSession, line: str, text: str
) -> None:
    result = runner.invoke(main, [*ASK, *line.split()])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {text}")


def test_run_names_a_deadline_and_says_what_it_led_to(
    runner: CliRunner, session: FakeSession
) -> None:
    session.last_result = SimpleNamespace(deadline=SimpleNamespace(reason="it fits"))
    result = runner.invoke(main, [*ASK, "--deadline-ms", "120", "--forbid", "0,0,9,9"])
    assert (result.stdout, result.stderr) == ("red cup\n", f"it fits\n{VERIFIED}\n")
    assert (session.asked["pruning"], session.asked["deadline_ms"]) == (None, 120)
    assert len(session.asked["regions"]) == 1


@pytest.mark.parametrize("option", ["--keep-ratio", "--prune", "--pre-prune"])
def test_a_deadline_leaves_nothing_to_choose(
    runner: CliRunner, session: FakeSession, option: str
) -> None:
    value = {"--keep-ratio": "0.5", "--prune": "fastv", "--pre-prune": "dart"}[option]
    result = runner.invoke(main, [*ASK, "--deadline-ms", "120", option, value])
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: deadline-ms 120 chooses what to keep, so {option} cannot go with it; leave one "
        f"out\n"
    )


def test_run_reads_regions(runner: CliRunner, session: FakeSession) -> None:
    line = "--protect 1,2,3.5,4 --protect 2:0,0,9,9 --forbid 5,5,6,6"
    succeed(runner, *ASK, *line.split())
    assert session.asked["regions"] == (
        Region(box=(1, 2, 3.5, 4)),
        Region(box=(0, 0, 9, 9), image=2),
        Region(box=(5, 5, 6, 6), rule="forbid"),
    )


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--protect 1,2,3", "'1,2,3' is not a box in pixels such as 10,20,110,90"),
        ("--protect first:1,2,3,4", "nor 2:10,20,110,90 for the second image"),
        ("--forbid 1,2,1,4", "forbid region 1,2,1,4 is empty"),
        ("--forbid 0:1,2,3,4", "image 0 does not exist; they count from 1"),
    ],
)
def test_regions_that_are_none(
    runner: CliRunner, session: FakeSession, line: str, text: str
) -> None:
    result = runner.invoke(main, [*ASK, *line.split()])
    assert result.exit_code == 2
    assert text in " ".join(result.stderr.split())


def test_run_json_is_the_record(runner: CliRunner, session: FakeSession) -> None:
    assert json.loads(succeed(runner, *ASK, "--json")) == {"text": "red cup", "stages": []}


def test_run_reads_pictures_from_files_and_a_pipe(runner: CliRunner, session: FakeSession) -> None:
    succeed(runner, *ASK, "--image", "-", input=b"piped")
    assert session.asked["images"] == [Path("a.png"), b"piped"]


def test_run_refuses_other_stages(runner: CliRunner, session: FakeSession) -> None:
    result = runner.invoke(main, [*ASK, "--stages", "2"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: b prunes before layers 4,6, which its export fixed;")
    assert session.closed


# inspect and doctor: reports of plain values


def test_inspect_of_nothing_is_one_line(runner: CliRunner) -> None:
    result = runner.invoke(main, ["inspect", "b"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: b is not a bundle")
    assert result.stderr.count("\n") == 1


REPORT = SimpleNamespace(
    version="0.1.0", python="3.11", platform="Linux, aarch64, glibc 2.35, 6 cores", gpu=None,
    facts=read_platform(Path(__file__).parents[2] / "support" / "platforms" / "jetpack6"),
    bundle=(
        Loading(backend="onnxruntime", target=None, failure=None, verification=VERIFIED),
        Loading(backend="tensorrt", target="rtx", failure="it does not fit"),
    ),
    packages={"numpy": "2.0", "openvino": None},
    backends=(
        SimpleNamespace(
            name="onnxruntime", device="cuda", state="missing",
            remedy="pip install 'feather-edge[gpu]'",
        ),
        SimpleNamespace(name="fake", device="none", state="works", remedy=None),
    ),
    notes=("two builds",),
)  # fmt: skip


def test_what_the_platform_says_is_one_line() -> None:
    said = describe_platform(REPORT)
    assert said.startswith("board NVIDIA Jetson Orin Nano Engineering Reference Developer Kit")
    assert said.endswith(
        ", JetPack 6.2, L4T 36.4.3, CUDA 12.6.11, TensorRT 10.3.0.30, driver 540.4.0, "
        "GPU sm 8.7, GPU clock now 306 MHz of 1020, power mode 15W, "
        "memory 5957 of 7619 MiB free, swap 0 MiB"
    )


def test_doctor(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feather_edge.doctor.examine", lambda _bundle: REPORT)
    assert succeed(runner, "doctor").splitlines() == [
        "feather-edge 0.1.0, Python 3.11, Linux, aarch64, glibc 2.35, 6 cores",
        describe_platform(REPORT),
        "",
        "onnxruntime     cuda      missing   pip install 'feather-edge[gpu]'",
        "fake            none      works",
        "",
        "numpy               2.0",
        "openvino            -",
        "",
        "Bundle: onnxruntime, graphs: loads",
        "  verified: against transformers",
        "",
        "Bundle: tensorrt, engines for rtx: it does not fit",
        "",
        "Note: two builds",
    ]


def test_doctor_json(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feather_edge.doctor._probe", lambda *_: None)
    document = json.loads(succeed(runner, "doctor", "--json"))
    assert set(document) == {
        "version", "python", "platform", "gpu", "facts", "packages", "backends", "bundle", "notes",
    }  # fmt: skip
    assert document["backends"][0] == {
        "name": "onnxruntime", "device": "cpu", "state": "works", "remedy": None,
    }  # fmt: skip


# recipes


def test_recipes_lists_all(runner: CliRunner) -> None:
    out = succeed(runner, "recipes")
    assert [line for line in out.splitlines() if line.startswith("# ") and ":" not in line] == [
        "# fastv", "# feather", "# pyramiddrop", "# scene-vlm", "# unpruned",
    ]  # fmt: skip


def test_recipes_shows_one_with_every_key(runner: CliRunner) -> None:
    assert succeed(runner, "recipes", "fastv").splitlines() == [
        "stages = [2]",
        'prune = "fastv-full"',
        "keep_ratio = [0.5]",
        "stride = 3",
        'selection = "fill"',
        'precision = "fp32"',
        "# vision_precision: as precision, but int8 where that is int4",
        "# head_precision: float with a float precision, int8 with any other",
        "# embedding_precision: the narrower of the checkpoint's and the activations'",
        "# activations: fp32, where weights are integers",
        "block_size = 32",
        'clipping = "none"',
        "# opset: every form that can hold the precision",
        "seed = 0",
        'pre_prune = "none"',
        "pre_keep_ratio = 0.5",
        "# lowest_cosine: by precision",
        "lowest_overlap = 0.9",
    ]


def test_recipes_json(runner: CliRunner) -> None:
    assert json.loads(succeed(runner, "recipes", "unpruned", "--json"))["stages"] == []
    assert set(json.loads(succeed(runner, "recipes", "--json"))) == {
        "fastv", "feather", "pyramiddrop", "scene-vlm", "unpruned",
    }  # fmt: skip


def test_recipes_checks_a_file(runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("ratio = 1")
    result = runner.invoke(main, ["recipes", "mine.toml"])
    assert result.exit_code == 1
    assert "key 'ratio' is unknown (did you mean 'keep_ratio'?)" in result.stderr


# demo


def test_demo(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(box: tuple[float, ...] | None, iou: float, *kept: int) -> SimpleNamespace:
        stages = [SimpleNamespace(num_kept=count) for count in kept]
        result = SimpleNamespace(stages=stages, text="a tree")
        return SimpleNamespace(result=result, box=box, iou=iou, ttft_ms=9.5, prefill_ms=4.25)

    scene = SimpleNamespace(
        file="00.png", question="where is it?", box=(1.0, 2.0, 30.0, 40.0),
        unpruned=answer((1.0, 2.0, 31.0, 40.0), 0.97), pruned=answer(None, 0.0, 98, 49),
    )  # fmt: skip
    report = SimpleNamespace(
        bundle=Path("cache/demo"), picture=Path("x.png"), num_visual_tokens=196,
        prefill_ratio=0.61, scenes=(scene,), to_dict=lambda: {"prefill_ratio": 0.61},
    )  # fmt: skip
    calls: list[dict[str, Any]] = []

    def run_demo(**options: Any) -> SimpleNamespace:
        calls.append(options)
        return report

    monkeypatch.setattr("feather_edge.demo.run_demo", run_demo)
    lines = [line.rstrip() for line in succeed(runner, "demo", "-o", "x.png").splitlines()]
    assert calls == [{"output": Path("x.png"), "backend": "auto", "on_progress": None}]
    assert lines[0] == "00.png: where is it? It is at 1, 2, 30, 40."
    assert lines[2].split() == ["196", "1,", "2,", "31,", "40", "0.97", "4.25", "9.50"]
    assert lines[3].split() == ["196", ">", "98", ">", "49", "a", "tree", "0.00", "4.25", "9.50"]
    assert lines[-3:] == [
        "prefill takes 0.61 of its unpruned time (median)",
        "bundle: cache/demo",
        "picture of the kept tokens: x.png",
    ]
    assert json.loads(succeed(runner, "demo", "--json")) == {"prefill_ratio": 0.61}


def test_errors_of_the_main_function_reach_the_user(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise CheckpointError("config.json is cut off; fetch it again")

    monkeypatch.setattr(pipeline, "export", fail)
    result = runner.invoke(main, ["export", "demo", "-o", "b"])
    assert result.exit_code == 1
    assert result.stderr == "Error: config.json is cut off; fetch it again\n"
