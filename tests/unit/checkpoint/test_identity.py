"""Whether a checkpoint is the one that it was."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from feather_edge.checkpoint.identity import checkpoint_identity

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("{{ x }}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    os.utime(tmp_path / "model.safetensors", ns=(0, 0))
    return tmp_path


def test_it_is_what_is_read(folder: Path) -> None:
    before = checkpoint_identity(folder)
    (folder / "README.md").write_text("read me")
    os.utime(folder / "config.json", ns=(0, 0))
    assert checkpoint_identity(folder) == before


@pytest.mark.parametrize("name", ["config.json", "chat_template.jinja", "model.safetensors"])
def test_any_change_counts(folder: Path, name: str) -> None:
    before = checkpoint_identity(folder)
    (folder / name).write_bytes(b"[]")
    assert checkpoint_identity(folder) != before


def test_weights_of_the_same_size_count_by_their_time(folder: Path) -> None:
    """Two trainings of one model differ in nothing else that is cheap to read."""
    before = checkpoint_identity(folder)
    os.utime(folder / "model.safetensors", ns=(0, 1))
    assert checkpoint_identity(folder) != before


def test_a_new_name_counts(folder: Path) -> None:
    before = checkpoint_identity(folder)
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    assert checkpoint_identity(folder) != before
