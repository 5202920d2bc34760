"""LLaVA 1.5: the checks of every family hold for the oldest one too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
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

from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from support.bundles import BundleFactory

SHAPES = {
    "clip-llama": {"image_size": 56},
    "siglip-qwen2": {"image_size": 45, "vision": "siglip", "text": "qwen2"},
}


@pytest.fixture(scope="module", params=SHAPES)
def pair(request: pytest.FixtureRequest, bundles: BundleFactory) -> Pair:
    recipe = ExportRecipe(stages=(2, 4))
    return open_pair(bundles(num_layers=6, recipe=recipe, **SHAPES[request.param]))


@pytest.mark.parametrize("name", ODD_PICTURES)
def test_odd_pictures(pair: Pair, name: str) -> None:
    check_pictures(pair, [odd_picture(name)])


@pytest.mark.parametrize("count", [0, 2])
def test_prompts_with_no_picture_and_several(pair: Pair, count: int) -> None:
    check_pictures(pair, [odd_picture(name) for name in ODD_PICTURES[-count:][:count]])


@pytest.mark.parametrize("count", [1, 2])
def test_unpruned(pair: Pair, count: int) -> None:
    check_unpruned(pair, random_images(count))
    check_reference(pair, random_images(count))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("method", "selection"), KINDS)
def test_pruned(pair: Pair, method: str, selection: str, count: int) -> None:
    check_pruned(pair, random_images(count, seed=count), method, selection)


def test_regions(pair: Pair) -> None:
    check_regions(pair)
