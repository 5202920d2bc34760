"""The whole chain on a tiny checkpoint: what runs, what does not, what is left to the device."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from support.killing import MEASURED, deployment, tree

from feather_edge.bundle import Bundle
from feather_edge.deploy import verification
from feather_edge.deploy.chain import deploy
from feather_edge.deploy.deployment import Watch
from feather_edge.deploy.dry_run import dry_run
from feather_edge.deploy.target import read_target
from feather_edge.errors import BuildError, BundleError, FitError, ParityError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.bundles import BundleFactory

    from feather_edge.deploy.deployment import Deployment
    from feather_edge.deploy.report import DeployReport
    from feather_edge.deploy.state import StageName

ALL = ["fit", "export", "build-engine", "verify", "bench"]


class Notes(Watch):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}

    def on_stage(self, name: StageName, what: str) -> None:
        self.said[name] = what


@pytest.fixture(scope="module")
def source(bundles: BundleFactory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose answers are short."""
    folder = tmp_path_factory.mktemp("source") / "checkpoint"
    shutil.copytree(bundles.checkpoint(num_layers=4), folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_new_tokens": 3}))
    return folder


@pytest.fixture(scope="module")
def deployed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a deployed bundle, not to be changed."""
    output = tmp_path_factory.mktemp("deployed") / "bundle"
    deploy(deployment(str(source), output))
    return output


@pytest.fixture
def own(deployed: Path, tmp_path: Path) -> Path:
    """A deployed bundle of one's own."""
    return shutil.copytree(deployed, tmp_path / "own" / "bundle")


@pytest.fixture
def asked(source: Path, own: Path) -> Callable[..., Deployment]:
    """Ask for the deployment that was done, or for another."""
    return lambda **options: deployment(str(source), own, **options)


def new_stages(report: DeployReport) -> list[str]:
    return [stage.name for stage in report.stages if stage.is_new]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_whole_chain(source: Path, tmp_path: Path) -> None:
    notes = Notes()
    output = tmp_path / "deep" / "bundle"

    report = deploy(deployment(str(source), output), watch=notes)

    assert [stage.name for stage in report.stages] == ALL == list(notes.said)
    assert [stage.status for stage in report.stages] == [
        "done", "done", "not-needed", "done", "done",
    ]  # fmt: skip
    assert new_stages(report) == ALL
    assert report.is_complete
    assert report.next_command is None
    assert report.bench is not None
    assert report.bench["pruned"]["num_visual_tokens"][1] > 0
    assert Bundle.open(output).schedule.stages == (2,)
    assert {*MEASURED, "deploy/state.json"} <= {
        file.relative_to(output).as_posix() for file in output.rglob("*")
    }
    assert [path.name for path in output.parent.iterdir()] == ["bundle"]


def test_a_second_call_changes_nothing(own: Path, asked: Callable[..., Deployment]) -> None:
    before = everything(own.parent)
    notes = Notes()
    report = deploy(asked(), watch=notes)
    assert new_stages(report) == []
    assert set(notes.said.values()) == {"up to date"}
    assert everything(own.parent) == before


def test_only_what_depends_on_a_change_is_done_again(
    own: Path, source: Path, asked: Callable[..., Deployment]
) -> None:
    notes = Notes()
    assert new_stages(deploy(asked(repeat=2), watch=notes)) == ["bench"]
    assert notes.said["bench"] == "runs, repeat changed"

    assert new_stages(deploy(asked(repeat=2, keep_ratio=0.4), watch=notes)) == ALL
    assert notes.said["export"] == "runs, recipe changed"

    weights = source / "model.safetensors"
    before_ns = weights.stat().st_mtime_ns
    os.utime(weights, ns=(before_ns, before_ns + 1))
    plan = dry_run(asked(repeat=2, keep_ratio=0.4))
    os.utime(weights, ns=(before_ns, before_ns))
    assert (plan.stages[1].what, plan.stages[1].why) == ("runs", "checkpoint changed")


def test_what_is_damaged_is_made_again(own: Path, asked: Callable[..., Deployment]) -> None:
    file = own / "onnx" / "decoder_0.onnx"
    file.write_bytes(file.read_bytes()[:-1])
    notes = Notes()
    assert "export" in new_stages(deploy(asked(), watch=notes))
    assert notes.said["export"] == "runs, what it made is damaged or gone"
    Bundle.open(own).check_files()


def test_a_page_that_is_gone_is_written_again(own: Path, asked: Callable[..., Deployment]) -> None:
    (own / "report.html").unlink()
    assert new_stages(deploy(asked())) == []
    assert (own / "report.html").is_file()


def test_from_a_stage_on(
    source: Path, own: Path, asked: Callable[..., Deployment], tmp_path: Path
) -> None:
    """What comes before is taken as it is: the checkpoint need not even be there."""
    away = source.rename(tmp_path / "away")
    notes = Notes()
    try:
        report = deploy(asked(), watch=notes, from_stage="verify")
    finally:
        away.rename(source)
    assert new_stages(report) == ["verify", "bench"]
    assert notes.said["export"] == "taken as it is recorded"


def test_from_a_stage_that_nothing_leads_to(source: Path, tmp_path: Path) -> None:
    message = "from-stage verify: .*bundle has no record of fit, which comes before; leave"
    with pytest.raises(RequestError, match=message):
        deploy(deployment(str(source), tmp_path / "bundle"), from_stage="verify")


def test_bundles_of_another_origin_need_force(
    own: Path, source: Path, bundles: BundleFactory
) -> None:
    other = bundles.checkpoint(num_layers=4)
    before = everything(own.parent)
    with pytest.raises(BundleError, match=r"was deployed from .*checkpoint, not from .*; replace"):
        deploy(deployment(str(other), own))
    shutil.rmtree(own / "deploy")
    with pytest.raises(BundleError, match="exists and was not made by deploy; replace it with"):
        deploy(deployment(str(source), own))
    assert before.keys() >= everything(own.parent).keys()
    assert new_stages(deploy(deployment(str(source), own, force=True))) == ALL


def test_a_failure_leaves_the_earlier_bundle_and_what_was_done(
    own: Path, asked: Callable[..., Deployment], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(own)

    def differ(*_: Any, **__: Any) -> None:
        raise ParityError("logits differ")

    with monkeypatch.context() as patch:
        patch.setattr(verification, "verify", differ)
        message = r"^verify: logits differ; .*\.bundle\.unfinished has what was done, go on with"
        with pytest.raises(ParityError, match=message):
            deploy(asked(keep_ratio=0.4))
    assert everything(own) == before
    assert new_stages(deploy(asked(keep_ratio=0.4))) == ["verify", "bench"]
    assert [path.name for path in own.parent.iterdir()] == ["bundle"]


def test_another_machine_is_left_what_only_it_can_do(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    orin = deployment(str(source), output, target=read_target("orin-nano-8gb"))
    report = deploy(orin)
    assert [stage.status for stage in report.stages] == ["done", "done", "to-do", "to-do", "to-do"]
    assert not report.is_complete
    assert report.next_command == (
        f"feather-edge deploy {source} --target orin-nano-8gb -o {output} "
        f"--from-stage build-engine"
    )
    verified = report.stages[3]
    (compared,) = verified.result["parity"]
    assert compared["tested"] == "onnxruntime with opset 18"
    assert "no NVIDIA GPU was found here" in (verified.reason or "")
    assert report.bench is None
    page = (output / "report.html").read_text()
    assert "to be finished on the device" in page
    assert "--from-stage build-engine" in page
    assert new_stages(deploy(orin)) == []


def test_what_the_target_cannot_build_is_told_here(source: Path, tmp_path: Path) -> None:
    asked = deployment(str(source), tmp_path / "bundle", target=read_target("orin-nano-8gb"))
    recipe = msgspec.structs.replace(asked.recipe, opset="23")
    message = "^build-engine: .* reads none of these; export with --opset all; .*unfinished has"
    with pytest.raises(BuildError, match=message):
        deploy(dataclasses.replace(asked, recipe=recipe))
    assert not (tmp_path / "bundle").exists()


def test_what_does_not_fit_is_refused_before_anything_is_done(
    source: Path, tmp_path: Path
) -> None:
    robot = tmp_path / "robot.toml"
    robot.write_text('compute_capabilities = ["8.7"]\nshared_memory_mib = 400\n')
    asked = deployment(str(source), tmp_path / "bundle", target=read_target(str(robot)))
    with pytest.raises(FitError, match=r"^fit: .*does not fit robot: .*go on all the same with"):
        deploy(asked)
    assert [path.name for path in tmp_path.iterdir()] == ["robot.toml"]
    assert dry_run(asked).fit.verdict == "does not fit"
    report = deploy(dataclasses.replace(asked, force=True))
    assert report.fit["verdict"] == "does not fit"
    assert "does not fit" in (tmp_path / "bundle" / "report.html").read_text()


def test_a_dry_run_does_nothing(own: Path, asked: Callable[..., Deployment]) -> None:
    before = everything(own.parent)
    assert {stage.what for stage in dry_run(asked()).stages} == {"up-to-date"}
    plan = dry_run(asked(keep_ratio=0.4))
    assert [(stage.name, stage.what, stage.why) for stage in plan.stages] == [
        ("fit", "runs", "recipe changed"),
        ("export", "runs", "recipe changed"),
        ("build-engine", "not-needed", "target cpu has no engines"),
        ("verify", "runs", "after export"),
        ("bench", "runs", "after export"),
    ]
    plan = dry_run(asked(target=read_target("agx-thor")))
    assert [stage.what for stage in plan.stages] == [
        "runs", "up-to-date", "to-do", "to-do", "to-do",
    ]  # fmt: skip
    plan = dry_run(asked(), from_stage="bench")
    assert [stage.what for stage in plan.stages] == ["up-to-date"] * 4 + ["runs"]
    assert everything(own.parent) == before


def test_a_page_for_elsewhere(own: Path, asked: Callable[..., Deployment], tmp_path: Path) -> None:
    deploy(asked(), page=tmp_path / "for-a-colleague.html")
    page = (tmp_path / "for-a-colleague.html").read_bytes()
    assert page == (own / "report.html").read_bytes()
    with pytest.raises(RequestError, match=r"report .* cannot be written: .*nowhere is no folder"):
        deploy(asked(), page=tmp_path / "nowhere" / "report.html")


def test_what_is_recorded_holds_no_times(deployed: Path, source: Path, tmp_path: Path) -> None:
    deploy(deployment(str(source), tmp_path / "bundle"))
    again = tree(tmp_path / "bundle")
    assert {name for name, data in tree(deployed).items() if again[name] != data} == set()
