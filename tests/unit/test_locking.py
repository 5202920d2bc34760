"""One writer at a time, and what a killed one leaves."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from feather_edge.errors import BundleError
from feather_edge.locking import exclusive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOLDER = """
import sys, time
from pathlib import Path
from feather_edge.locking import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes the bundle."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "bundle")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_writer_is_refused(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match="bundle is being written by another process, which"),
        exclusive(tmp_path / "bundle"),
    ):
        pass
    assert holder.poll() is None
    with exclusive(tmp_path / "other"):
        pass


def test_a_dead_process_holds_nothing(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with exclusive(tmp_path / "bundle"):
                break
        except BundleError:
            time.sleep(0.05)
    else:
        pytest.fail("the lock outlived its process")
    assert list(tmp_path.iterdir()) == []


def test_one_process_takes_it_once_for_all(tmp_path: Path) -> None:
    with exclusive(tmp_path / "bundle"), exclusive(tmp_path / "bundle"):
        assert [path.name for path in tmp_path.iterdir()] == [".bundle.lock"]
    assert list(tmp_path.iterdir()) == []
    with exclusive(tmp_path / "bundle"):
        pass


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    for name in (".bundle.partial-7", ".bundle.old-7", "bundle", ".bundle2.partial-7"):
        (tmp_path / name).mkdir()
    with exclusive(tmp_path / "bundle"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bundle2.partial-7", "bundle"]


def test_what_killed_writers_left_in_the_bundle_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "bundle" / "engines" / "rtx"
    folder.mkdir(parents=True)
    for name in (".decoder_0.partial", ".decoder_0.result", ".gitignore", "decoder_0.engine"):
        (folder / name).touch()
    with exclusive(tmp_path / "bundle"):
        pass
    assert sorted(path.name for path in folder.iterdir()) == [".gitignore", "decoder_0.engine"]


def test_a_bundle_that_was_set_aside_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".bundle.old-7").mkdir()
    (tmp_path / ".bundle.old-7" / "manifest.json").write_text("good")
    with exclusive(tmp_path / "bundle"):
        pass
    assert (tmp_path / "bundle" / "manifest.json").read_text() == "good"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(BundleError, match=r"cannot write .*bundle: "),
        exclusive(tmp_path / "file" / "bundle"),
    ):
        pass
