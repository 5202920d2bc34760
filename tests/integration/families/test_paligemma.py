"""PaliGemma and PaliGemma 2: the prompt sees itself both ways; Gemma and Gemma 2 decoders."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.families.gemma import PaliGemmaReference, tiny_paligemma
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

from feather_edge.errors import RequestError
from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from support.bundles import BundleFactory

RECIPE = ExportRecipe(stages=(2, 4))
TEXTS = ("gemma", "gemma2")


@pytest.fixture(scope="module", params=TEXTS)
def pair(request: pytest.FixtureRequest, bundles: BundleFactory) -> Pair:
    return open_pair(
        bundles(tiny_paligemma, recipe=RECIPE, text=request.param), PaliGemmaReference
    )


@pytest.mark.parametrize("name", ODD_PICTURES)
def test_odd_pictures(pair: Pair, name: str) -> None:
    check_pictures(pair, [odd_picture(name)])


def test_a_prompt_of_several_pictures(pair: Pair) -> None:
    check_pictures(pair, [odd_picture("grey"), odd_picture("large")], "compare")


@pytest.mark.parametrize("count", [1, 2])
def test_unpruned(pair: Pair, count: int) -> None:
    check_reference(pair, random_images(count))
    check_unpruned(pair, random_images(count))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("method", "selection"), KINDS)
def test_pruned(pair: Pair, method: str, selection: str, count: int) -> None:
    check_pruned(pair, random_images(count, seed=count), method, selection)


def test_a_conversation_is_refused(pair: Pair) -> None:
    messages = [{"role": "user", "content": "where ?"}]
    with pytest.raises(RequestError, match="no chat template, so messages cannot be rendered"):
        pair.session.generate([], messages)


def test_regions(pair: Pair) -> None:
    check_regions(pair)


@pytest.mark.parametrize("opset", ["24", "18"])
@pytest.mark.parametrize("text", TEXTS)
def test_other_forms(bundles: BundleFactory, opset: str, text: str) -> None:
    recipe = ExportRecipe(stages=(2, 4), opset=opset)
    pair = open_pair(bundles(tiny_paligemma, recipe=recipe, text=text), PaliGemmaReference)

    check_unpruned(pair, random_images(1))
    check_pruned(pair, random_images(1), "fastv", "fill")
