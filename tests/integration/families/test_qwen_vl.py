"""Qwen2-VL and Qwen2.5-VL: native resolution, windows, M-RoPE."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.families.qwen_vl import SHAPES, QwenVlReference, tiny_qwen_vl
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

STAGES = (2, 4)
MADE = [(model_type, layout) for model_type, layouts in SHAPES.items() for layout in layouts]


def open_tiny(
    bundles: BundleFactory, model_type: str, layout: str, *, opset: str = "23", **options: object
) -> Pair:
    recipe = ExportRecipe(stages=STAGES, opset=opset)
    exported = bundles(
        tiny_qwen_vl, recipe=recipe, model_type=model_type, layout=layout, **options
    )
    return open_pair(exported, QwenVlReference)


@pytest.fixture(scope="module", params=MADE, ids=lambda each: "-".join(each))
def pair(request: pytest.FixtureRequest, bundles: BundleFactory) -> Pair:
    return open_tiny(bundles, *request.param)


@pytest.mark.parametrize("name", ODD_PICTURES)
def test_odd_pictures(pair: Pair, name: str) -> None:
    check_pictures(pair, [odd_picture(name)])


@pytest.mark.parametrize("count", [0, 2])
def test_prompts_with_no_picture_and_several(pair: Pair, count: int) -> None:
    check_pictures(pair, [odd_picture(name) for name in ODD_PICTURES[-count:][:count]])


@pytest.mark.parametrize("count", [0, 1, 2])
def test_unpruned(pair: Pair, count: int) -> None:
    check_unpruned(pair, random_images(count))
    check_reference(pair, random_images(count))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("method", "selection"), KINDS)
def test_pruned(pair: Pair, method: str, selection: str, count: int) -> None:
    check_pruned(pair, random_images(count, seed=count), method, selection)


@pytest.mark.parametrize(("model_type", "layout"), MADE)
def test_the_older_operators(bundles: BundleFactory, model_type: str, layout: str) -> None:
    pair = open_tiny(bundles, model_type, layout, opset="18", is_tied=True)

    check_unpruned(pair, random_images(2))
    check_pruned(pair, random_images(2, seed=4), "fastv", "fill")


def test_regions(pair: Pair) -> None:
    check_regions(pair)
