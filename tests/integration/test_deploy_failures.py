"""Deployments that are killed, doubled, or refused by the disk: nothing half-finished is left."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.killing import tree

from feather_edge.deploy.target import CPU

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.bundles import BundleFactory

pytestmark = pytest.mark.slow

NUM_TRIALS = 10
NUM_KILLED_COMMANDS = 4
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def source(bundles: BundleFactory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose answers are short."""
    folder = tmp_path_factory.mktemp("source") / "checkpoint"
    shutil.copytree(bundles.checkpoint(num_layers=4), folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_new_tokens": 3}))
    return folder


def command(source: Path, output: Path, *options: str) -> list[str]:
    return [
        sys.executable, "-m", "feather_edge", "deploy", str(source), "--target", CPU,
        "-o", str(output), "--stages", "2", "--warmup", "0", "--repeat", "1", *options,
    ]  # fmt: skip


def run(
    source: Path, output: Path, *options: str, before: Callable[[], Any] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(source, output, *options), capture_output=True, text=True, check=False,
        preexec_fn=before,
    )  # fmt: skip


@pytest.fixture(scope="module")
def deployed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployed bundle, not to be changed."""
    output = tmp_path_factory.mktemp("deployed") / "bundle"
    done = run(source, output)
    assert done.returncode == 0, done.stderr
    return output


def everything(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that an expected failure ends with."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("Error: ")
    return line


def test_killed_at_any_moment_it_ends_as_if_undisturbed(source: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "support.killing", str(source), str(tmp_path), str(NUM_TRIALS)],
        check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    trials = json.loads((tmp_path / "trials.json").read_text())
    assert len(trials) == NUM_TRIALS
    for trial in trials:
        assert trial["status"] == 0, trial
        assert trial["differs"] == [], trial
        assert trial["beside"] == ["bundle"], trial
        assert trial["left_is_whole"], trial
    killed = [kill for trial in trials for kill in trial["kills"] if kill["status"] == -9]
    assert len(killed) >= NUM_TRIALS - 2


def test_the_command_itself_may_be_killed(source: Path, deployed: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    start_s = time.monotonic()
    process = subprocess.Popen(command(source, output), stderr=subprocess.DEVNULL)
    process.wait()
    whole_s = time.monotonic() - start_s
    wanted = tree(output)
    shutil.rmtree(output)
    for number in range(NUM_KILLED_COMMANDS):
        process = subprocess.Popen(
            command(source, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(whole_s * (number + 1) / (NUM_KILLED_COMMANDS + 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert run(source, output).returncode == 0
    assert tree(output) == wanted
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_two_at_once_exclude_each_other(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    with subprocess.Popen(command(source, output), stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr is not None
        assert first.stderr.readline() == "fit: runs, not done yet\n"
        first.send_signal(signal.SIGSTOP)
        line = last_line(run(source, output))
        assert f"{output} is being written by another process, which holds" in line
        first.send_signal(signal.SIGCONT)
        first.stderr.read()
    assert first.returncode == 0
    assert run(source, output).returncode == 0


@pytest.mark.parametrize(
    ("option", "limit"),
    [
        (("--keep-ratio", "0.4"), 1000),
        (("--keep-ratio", "0.4"), 90_000),
        (("--repeat", "2"), 1000),
    ],
    ids=["before anything", "amid the weights", "after the benchmark"],
)
def test_a_full_disk_leaves_the_earlier_bundle(
    source: Path, deployed: Path, tmp_path: Path, option: tuple[str, str], limit: int
) -> None:
    """A limit on the size of files stands for a disk: writing stops in the middle of a file."""
    output = shutil.copytree(deployed, tmp_path / "bundle")
    before = everything(output)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    line = last_line(run(source, output, *option, before=limited))
    assert "cannot write" in line
    assert "File too large" in line or "no space left, or a quota is reached" in line
    assert everything(output) == before
    done = run(source, output, *option)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def respect_permissions() -> None:
    """Let root, too, be stopped by a folder's permissions; others are anyway."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE)


def test_a_read_only_folder_is_one_line(source: Path, deployed: Path, tmp_path: Path) -> None:
    output = shutil.copytree(deployed, tmp_path / "folder" / "bundle")
    before = everything(output)
    output.parent.chmod(0o555)
    try:
        done = run(source, output, "--keep-ratio", "0.4", before=respect_permissions)
        fresh = run(source, output.parent / "fresh", before=respect_permissions)
    finally:
        output.parent.chmod(0o755)
    assert last_line(done) == f"Error: cannot write {output}: Permission denied"
    assert last_line(fresh).endswith("fresh: Permission denied")
    assert everything(output) == before
