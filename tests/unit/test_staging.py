"""Bundles that appear whole or not at all, in one go or in several."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from feather_edge.errors import BundleError
from feather_edge.manifest import MANIFEST_FILE
from feather_edge.staging import staging_folder, unfinished_bundle, write_whole

if TYPE_CHECKING:
    from pathlib import Path


def test_appears_whole(tmp_path: Path) -> None:
    with staging_folder(tmp_path / "deep" / "out", force=False) as staging:
        (staging / "file").write_text("x")
        assert not (tmp_path / "deep" / "out").exists()

    assert (tmp_path / "deep" / "out" / "file").read_text() == "x"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_failure_leaves_nothing(tmp_path: Path, kind: type[BaseException]) -> None:
    def write_and_fail() -> None:
        with staging_folder(tmp_path / "out", force=False) as staging:
            (staging / "file").write_text("x")
            raise kind

    with pytest.raises(kind):
        write_and_fail()

    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_the_old_bundle(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST_FILE).write_text("old")

    with pytest.raises(ValueError, match="no"), staging_folder(tmp_path / "out", force=True):
        raise ValueError("no")

    assert (tmp_path / "out" / MANIFEST_FILE).read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_force_replaces_a_bundle_altogether(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST_FILE).write_text("old")
    (tmp_path / "out" / "stale").write_text("old")

    with staging_folder(tmp_path / "out", force=True) as staging:
        (staging / MANIFEST_FILE).write_text("new")

    assert [p.name for p in (tmp_path / "out").iterdir()] == [MANIFEST_FILE]
    assert (tmp_path / "out" / MANIFEST_FILE).read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_existing_output_needs_force(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    with (
        pytest.raises(BundleError, match="out already exists; overwrite it with --force"),
        staging_folder(tmp_path / "out", force=False),
    ):
        pass


def test_force_takes_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    with staging_folder(tmp_path / "out", force=True) as staging:
        (staging / "file").write_text("x")

    assert (tmp_path / "out" / "file").is_file()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_force_does_not_replace_something_else(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
        (out / "thesis.txt").write_text("precious")
    else:
        out.write_text("precious")

    message = "exists and is not a bundle, so --force will not replace it; choose another output"
    with pytest.raises(BundleError, match=message), staging_folder(out, force=True):
        pass
    assert (out / "thesis.txt" if kind == "folder" else out).read_text() == "precious"


def test_output_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    with (
        pytest.raises(BundleError, match=r"cannot write .*out: .+"),
        staging_folder(tmp_path / "file" / "out", force=False),
    ):
        pass


def test_full_disk_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match=r"cannot write .*out: No space left on device"),
        staging_folder(tmp_path / "out", force=False),
    ):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_old_bundle_is_put_back_when_the_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST_FILE).write_text("old")
    rename = type(tmp_path).rename

    def failing(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", failing)
    with (
        pytest.raises(BundleError, match="Input/output error"),
        staging_folder(tmp_path / "out", force=True),
    ):
        pass

    assert (tmp_path / "out" / MANIFEST_FILE).read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


# -- in several goes --------------------------------------------------------------------------


def make_bundle(folder: Path) -> Path:
    (folder / "onnx").mkdir(parents=True)
    (folder / MANIFEST_FILE).write_text("old")
    (folder / "onnx" / "weights").write_text("old weights")
    return folder


def test_an_unfinished_bundle_outlives_a_failure(tmp_path: Path) -> None:
    def write_and_fail() -> None:
        with unfinished_bundle(out) as unfinished:
            write_whole(unfinished.begin() / MANIFEST_FILE, b"new")
            raise ValueError("no")

    out = make_bundle(tmp_path / "out")
    with pytest.raises(ValueError, match="no"):
        write_and_fail()

    assert (out / MANIFEST_FILE).read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.unfinished", "out"]
    with unfinished_bundle(out) as unfinished:
        assert unfinished.begin() == unfinished.folder
        assert (unfinished.folder / MANIFEST_FILE).read_text() == "new"
        unfinished.publish()
    assert (out / MANIFEST_FILE).read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_unfinished_bundle_shares_the_weights_of_the_one_it_replaces(tmp_path: Path) -> None:
    out = make_bundle(tmp_path / "out")
    with unfinished_bundle(out) as unfinished:
        weights = unfinished.begin() / "onnx" / "weights"
        assert weights.samefile(out / "onnx" / "weights")


def test_a_file_system_without_links_gets_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: str, target: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    out = make_bundle(tmp_path / "out")
    with unfinished_bundle(out) as unfinished:
        weights = unfinished.begin() / "onnx" / "weights"
        assert not weights.samefile(out / "onnx" / "weights")
        assert weights.read_text() == "old weights"


def test_nothing_begun_is_nothing_to_publish(tmp_path: Path) -> None:
    out = make_bundle(tmp_path / "out")
    with unfinished_bundle(out) as unfinished:
        assert unfinished.folder == out
        unfinished.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_says_where_to_go_on(tmp_path: Path) -> None:
    def begin_and_fail() -> None:
        with unfinished_bundle(out) as unfinished:
            unfinished.begin()
            raise OSError(28, "No space left on device")

    message = r"cannot write .*out: No space left on device; .*\.out\.unfinished has what was done"
    out = make_bundle(tmp_path / "out")
    with pytest.raises(BundleError, match=message):
        begin_and_fail()
    assert (out / MANIFEST_FILE).read_text() == "old"


def test_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    message = "out exists and is not a bundle; choose another output"
    with pytest.raises(BundleError, match=message), unfinished_bundle(tmp_path / "out"):
        pass


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "deep" / "file", b"old")

    def fail(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tmp_path), "write_bytes", fail)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "deep" / "file", b"new")
    assert (tmp_path / "deep" / "file").read_text() == "old"
