"""Gemma 3: local and global layers, pictures that see themselves both ways."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from support.families.gemma import Gemma3Reference, tiny_gemma3
from support.family_checks import (
    KINDS,
    ODD_PICTURES,
    check_pictures,
    check_pruned,
    check_reference,
    check_regions,
    check_unpruned,
    odd_picture,
)
from support.images import random_images
from support.pairs import Pair, open_pair

from feather_edge.errors import CheckpointError, RequestError, UnsupportedModelError
from feather_edge.export.pipeline import export
from feather_edge.pruning import Pruning
from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory

RECIPE = ExportRecipe(stages=(2, 4))
SHAPES = ("windowed", "scaled")


@pytest.fixture(scope="module", params=SHAPES)
def pair(request: pytest.FixtureRequest, bundles: BundleFactory) -> Pair:
    return open_pair(bundles(tiny_gemma3, recipe=RECIPE, shape=request.param), Gemma3Reference)


@pytest.mark.parametrize("name", ODD_PICTURES)
def test_odd_pictures(pair: Pair, name: str) -> None:
    check_pictures(pair, [odd_picture(name)])


@pytest.mark.parametrize("count", [0, 2])
def test_prompts_with_no_picture_and_several(pair: Pair, count: int) -> None:
    check_pictures(pair, [odd_picture(name) for name in ODD_PICTURES[-count:][:count]])


@pytest.mark.parametrize("count", [0, 1, 2])
def test_unpruned(pair: Pair, count: int) -> None:
    check_reference(pair, random_images(count))
    check_unpruned(pair, random_images(count))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("method", "selection"), KINDS)
def test_pruned(pair: Pair, method: str, selection: str, count: int) -> None:
    check_pruned(pair, random_images(count, seed=count), method, selection)


@pytest.mark.parametrize("opset", ["24", "23"])
def test_a_last_segment_of_local_layers_only(bundles: BundleFactory, opset: str) -> None:
    """It reads neither the mask nor the tables of the layers that see everything."""
    recipe = ExportRecipe(stages=(3,), opset=opset)
    pair = open_pair(bundles(tiny_gemma3, recipe=recipe, num_hidden_layers=5), Gemma3Reference)
    names = {tensor.name for tensor in pair.session.bundle.decoders[-1].inputs}

    assert {"local_cos", "local_attention_mask"} <= names
    assert not {"cos", "sin", "attention_mask"} & names
    check_unpruned(pair, random_images(1))
    check_pruned(pair, random_images(1), "fastv", "fill")


def test_windows_cannot_be_numbered_anew(pair: Pair) -> None:
    pruning = Pruning(criterion="pyramiddrop-reset", keep_ratio=(0.5, 0.25))
    with pytest.raises(RequestError, match="numbered anew in gemma3, which has windows of pos"):
        pair.session.generate(random_images(1), "what ?", pruning=pruning)


def test_a_placeholder_in_the_text_is_refused(pair: Pair) -> None:
    with pytest.raises(RequestError, match="has <image_soft_token> in its text, which stands for"):
        pair.session.generate([], "what is <image_soft_token> ?")


def edited(checkpoint: Path, folder: Path, file: str, **changes: object) -> Path:
    """A copy of a checkpoint with other settings in one of its files."""
    shutil.copytree(checkpoint, folder)
    document = json.loads((folder / file).read_text())
    for key, value in changes.items():
        part, _, name = key.rpartition("__")
        (document[part] if part else document)[name] = value
    (folder / file).write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "processor_config.json",
            {"image_processor__do_pan_and_scan": True},
            "do_pan_and_scan is not supported; set it to false in the preprocessor config",
        ),
        (
            "config.json",
            {"mm_tokens_per_image": 15},
            "mm_tokens_per_image is 15; it must be the square of a number that divides the 8",
        ),
        ("config.json", {"boi_token_index": 9999}, "has no token 9999, which config.json takes"),
        (
            "config.json",
            {"text_config__use_bidirectional_attention": True},
            "use_bidirectional_attention of gemma3_text is not supported",
        ),
        (
            "config.json",
            {"text_config__layer_types": ["full_attention"]},
            "it must name one of sliding_attention and full_attention for each of 6 layers",
        ),
    ],
)
def test_variants_that_are_refused(
    bundles: BundleFactory, tmp_path: Path, file: str, changes: dict[str, object], message: str
) -> None:
    checkpoint = edited(bundles.checkpoint(tiny_gemma3), tmp_path / "variant", file, **changes)

    with pytest.raises((CheckpointError, UnsupportedModelError), match=message):
        export(checkpoint, tmp_path / "bundle", RECIPE)
    assert not (tmp_path / "bundle").exists()


def test_regions(pair: Pair) -> None:
    check_regions(pair)


@pytest.mark.parametrize("opset", ["24", "18"])
@pytest.mark.parametrize("shape", SHAPES)
def test_other_forms(bundles: BundleFactory, opset: str, shape: str) -> None:
    recipe = ExportRecipe(stages=(2, 4), opset=opset)
    pair = open_pair(bundles(tiny_gemma3, recipe=recipe, shape=shape), Gemma3Reference)

    check_unpruned(pair, random_images(1))
    check_pruned(pair, random_images(1), "fastv", "fill")
