"""Gemma 3: local and global layers, pictures that see themselves both ways."""

from __future__ import annotations

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

from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
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


def test_regions(pair: Pair) -> None:
    check_regions(pair)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_older_operators(bundles: BundleFactory, shape: str) -> None:
    recipe = ExportRecipe(stages=(2, 4), opset="18")
    pair = open_pair(bundles(tiny_gemma3, recipe=recipe, shape=shape), Gemma3Reference)

    check_unpruned(pair, random_images(1))
    check_pruned(pair, random_images(1), "fastv", "fill")
