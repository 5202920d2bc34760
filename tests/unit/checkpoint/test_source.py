from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

import feather_edge
from feather_edge.checkpoint import resolve_checkpoint
from feather_edge.errors import CheckpointError


@pytest.fixture
def hub(monkeypatch):
    """Stand in for huggingface_hub; records the calls and answers with `hub.answer`."""

    def snapshot_download(repo_id, *, allow_patterns):
        fake.calls.append((repo_id, allow_patterns))
        if isinstance(fake.answer, Exception):
            raise fake.answer
        return fake.answer

    fake = types.ModuleType("huggingface_hub")
    fake.snapshot_download = snapshot_download
    fake.calls = []
    fake.answer = "/cache/snapshot"
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


def test_a_local_folder(tmp_path):
    assert resolve_checkpoint(str(tmp_path)) == tmp_path


def test_a_local_folder_wins_over_a_hub_id(tmp_path, monkeypatch, hub):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_checkpoint("org/name") == Path("org/name")
    assert hub.calls == []


def test_the_shipped_model(tmp_path, monkeypatch):
    monkeypatch.setattr(feather_edge, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(CheckpointError, match=r"the shipped model is missing: .*install feather"):
        resolve_checkpoint("demo")
    folder = tmp_path / "assets" / "scene_vlm"
    folder.mkdir(parents=True)
    assert resolve_checkpoint("demo") == folder


def test_a_hub_id_fetches_no_pickle_and_no_code(hub):
    assert resolve_checkpoint("llava-hf/llava-1.5-7b-hf") == Path("/cache/snapshot")
    [(repo_id, patterns)] = hub.calls
    assert repo_id == "llava-hf/llava-1.5-7b-hf"
    assert patterns == ["*.safetensors", "*.json", "*.jinja"]


def test_a_hub_id_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError) as error:
        resolve_checkpoint("org/name")
    assert str(error.value) == (
        "org/name is no local folder, and fetching it from the hub needs huggingface_hub: "
        "pip install 'feather-edge[hub]'"
    )


@pytest.mark.parametrize(
    ("failure", "cause"),
    [
        (OSError("404 not found\nrequest id 7"), "OSError: 404 not found"),
        (ValueError(), "ValueError: no reason given"),
    ],
)
def test_a_hub_that_does_not_answer(hub, failure, cause):
    hub.answer = failure
    with pytest.raises(CheckpointError) as error:
        resolve_checkpoint("org/name")
    assert str(error.value) == (
        f"org/name is no local folder and cannot be fetched from the hub ({cause}); check the "
        "spelling, the network, and that you may read it"
    )


def test_a_file(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(CheckpointError, match="is a file; give the folder that holds config"):
        resolve_checkpoint(str(file))


@pytest.mark.parametrize(
    "spec", ["", "llava", "./absent", "a/b/c", "../x", "org/x.safetensors", "/no/such"]
)
def test_anything_else(spec, hub):
    with pytest.raises(CheckpointError) as error:
        resolve_checkpoint(spec)
    assert str(error.value) == (
        f"checkpoint {spec!r} does not exist; give a local folder, a hub id such as "
        "llava-hf/llava-1.5-7b-hf, or demo for the model that ships with feather-edge"
    )
    assert hub.calls == []
