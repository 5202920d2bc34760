from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from support.sealing import edit_manifest

from feather_edge.bundle import Bundle
from feather_edge.errors import BundleError
from feather_edge.manifest import MANIFEST_FILE
from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory


@pytest.fixture
def folder(bundles: BundleFactory, tmp_path: Path) -> Path:
    """A bundle of one's own, to be broken."""
    source = bundles(num_layers=4, recipe=ExportRecipe(stages=(1, 3))).bundle.path
    return shutil.copytree(source, tmp_path / "bundle")


def refuses(folder: Path, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(folder)
    assert "\n" not in str(caught.value)


# -- opening ----------------------------------------------------------------------------------


def test_opens_what_export_wrote(folder: Path) -> None:
    bundle = Bundle.open(str(folder))

    assert bundle.schedule.stages == (1, 3)
    assert bundle.vision_encoder.name == "vision_encoder"
    assert [g.name for g in bundle.decoders] == ["decoder_0", "decoder_1", "decoder_2"]
    assert bundle.embed_tokens_file.is_file()


def test_no_folder(tmp_path: Path) -> None:
    refuses(tmp_path / "none", "none is not a bundle: it has no manifest.json; make one with")


def test_folder_without_manifest(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()

    refuses(folder, "is not a bundle: it has no manifest.json; make one with 'feather-edge export")


def test_missing_file(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()

    refuses(folder, "misses tokenizer.json; export it again")


@pytest.mark.parametrize("size", [0, 100])
def test_file_of_another_size(folder: Path, size: int) -> None:
    (folder / "onnx" / "decoder_1.onnx_data").write_bytes(b"x" * size)

    refuses(folder, f"decoder_1.onnx_data has {size} bytes, the manifest says [0-9]+; the file is")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_other_format_version(folder: Path, version: object) -> None:
    edit_manifest(folder, lambda m: m.update(format_version=version))

    refuses(folder, f"format version {version!r}; this feather-edge reads version 1; export")


@pytest.mark.parametrize(
    "path", [(), ("recipe",), ("decoder",), ("image",), ("image", "preprocess"), ("rotary",)]
)
def test_unknown_key(folder: Path, path: tuple[str, ...]) -> None:
    def add(manifest: dict[str, Any]) -> None:
        for key in path:
            manifest = manifest[key]
        manifest["surprise"] = 1

    edit_manifest(folder, add)

    refuses(folder, "is not a valid manifest: .*unknown field `surprise`.*export it again")


@pytest.mark.parametrize("key", ["decoder", "graphs", "files", "eos_token_ids", "image"])
def test_missing_key(folder: Path, key: str) -> None:
    edit_manifest(folder, lambda m: m.pop(key))

    refuses(folder, f"is not a valid manifest: .*missing required field `{key}`")


def test_value_of_another_type(folder: Path) -> None:
    edit_manifest(folder, lambda m: m["decoder"].update(num_layers="four"))

    refuses(folder, r"is not a valid manifest: Expected `int`, got `str` - at `\$.decoder.num")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"3"])
def test_manifest_that_is_no_object(folder: Path, content: bytes) -> None:
    (folder / MANIFEST_FILE).write_bytes(content)

    refuses(folder, "manifest.json")


@pytest.mark.parametrize("name", ["/etc/hostname", "../outside", "onnx/../../outside"])
def test_file_outside_the_bundle(folder: Path, name: str) -> None:
    (folder.parent / "outside").write_text("x")
    edit_manifest(folder, lambda m: m["files"].update({name: {"num_bytes": 1, "sha256": ""}}))

    refuses(folder, f"names a file outside itself: '{name}'")


def test_graphs_that_are_not_those_of_the_schedule(folder: Path) -> None:
    edit_manifest(folder, lambda m: m["graphs"].pop())

    refuses(folder, "lists the graphs vision_encoder, decoder_0, decoder_1, but its stages make")


def test_a_form_without_a_file(folder: Path) -> None:
    edit_manifest(folder, lambda m: m["files"].pop("onnx/decoder_1.opset18.onnx"))
    (folder / "onnx" / "decoder_1.opset18.onnx").unlink()

    refuses(folder, "lists no file onnx/decoder_1.opset18.onnx; export it again")


def test_a_manifest_that_was_edited(folder: Path) -> None:
    file = folder / MANIFEST_FILE
    file.write_text(file.read_text().replace('"theta": 10000.0', '"theta": 10001.0'))

    refuses(folder, r"manifest.json is not as it was written \(its SHA-256 differs\)")


def test_a_manifest_may_be_laid_out_anew(folder: Path) -> None:
    file = folder / MANIFEST_FILE
    file.write_text(json.dumps(json.loads(file.read_text())))

    Bundle.open(folder)


def test_a_file_edited_at_its_size(folder: Path) -> None:
    file = folder / "tokenizer.json"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)

    refuses(folder, "tokenizer.json is not the file that was exported")


def test_large_files_are_hashed_when_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feather_edge.bundle.HASHED_BYTES", 10_000)
    file = folder / "onnx" / "decoder_1.onnx_data"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    bundle = Bundle.open(folder)
    assert bundle.check_files() == sum(r.num_bytes for r in bundle.manifest.files.values())

    file.write_bytes(content)
    bundle = Bundle.open(folder)
    with pytest.raises(BundleError, match=r"decoder_1.onnx_data is not the file that was expor"):
        bundle.check_files()


def test_a_file_that_nothing_accounts_for(folder: Path) -> None:
    (folder / "onnx" / "notes.txt").write_text("x")

    refuses(folder, r"notes.txt is no part of the bundle: its manifest does not list it; move it")


def test_what_commands_add_is_no_surprise(folder: Path) -> None:
    (folder / "engines" / "rtx").mkdir(parents=True)
    (folder / "engines" / "rtx" / "decoder_0.engine").write_text("x")

    Bundle.open(folder)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_links_out_of_the_bundle(folder: Path, kind: str) -> None:
    outside = folder.parent / "outside"
    if kind == "file":
        shutil.move(folder / "tokenizer.json", outside)
        (folder / "tokenizer.json").symlink_to(outside)
    else:
        shutil.move(folder / "onnx", outside)
        (folder / "onnx").symlink_to(outside)

    refuses(folder, "names a file outside itself")


@pytest.mark.parametrize("name", ["engines", "engines/rtx", "calibration", "verify.json", "more"])
def test_links_out_of_the_bundle_that_no_manifest_lists(folder: Path, name: str) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(outside)

    refuses(folder, rf"{name} leads out of the bundle, to .*outside; nothing outside it is opened")


def test_a_link_to_the_bundle_is_the_bundle(folder: Path) -> None:
    (folder.parent / "link").symlink_to(folder)

    Bundle.open(folder.parent / "link")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"format_version": 1', '"format_version": 1, "format_version": 1', "stands twice in one"),
        ("10000.0", "NaN", "it holds NaN; numbers must be finite"),
        ("10000.0", "1e999", "it holds 1e999; numbers must be finite"),
        ('"num_layers": 4', f'"num_layers": {10**30}', "integers must be at most 2"),
        ('"num_layers": 4', f'"num_layers": {"[" * 10**5}', "it is nested too deep"),
    ],
)
def test_json_that_is_not_strict(folder: Path, before: str, after: str, message: str) -> None:
    file = folder / MANIFEST_FILE
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))

    refuses(folder, f"is not a valid manifest: .*{message}")


def test_a_manifest_of_absurd_size(folder: Path) -> None:
    with (folder / MANIFEST_FILE).open("ab") as stream:
        stream.truncate(2**30)

    refuses(folder, "it has 1073741824 bytes; at most 16777216 are read")
