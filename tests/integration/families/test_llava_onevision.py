"""LLaVA-OneVision: tiles that are scaled down, and one tile each for several pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.edits import edited_checkpoint
from support.families.anyres import ReferenceLlavaOnevision, tiny_llava_onevision
from support.family_checks import (
    KINDS,
    ODD_PICTURES,
    check_pictures,
    check_pruned,
    check_reference,
    check_regions,
    check_renamed,
    check_unpruned,
    elongated,
    odd_picture,
)
from support.images import random_images
from support.pairs import Pair, open_pair

from feather_edge.errors import RequestError, UnsupportedModelError
from feather_edge.export.pipeline import export
from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory

SHAPES = {
    # Pictures of 90 pixels and more have 9 tiles, scaled down to 3.
    "qwen2": {"max_position_embeddings": 1024},
    # 45 pixels are three patches of 14 and a rest that nobody sees.
    "tied-llama": {
        "text": "llama",
        "tie_word_embeddings": True,
        "image_size": 45,
        "patch_size": 14,
        "max_tiles": 9,
    },
}
NAMES = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.", "model.vision_tower.vision_model."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("image_newline", "model.image_newline"),
)


FORMS = [("qwen2", "24"), ("qwen2", "18"), ("tied-llama", "23"), ("tied-llama", "18")]


@pytest.fixture(scope="module", params=FORMS, ids="-".join)
def pair(request: pytest.FixtureRequest, bundles: BundleFactory) -> Pair:
    shape, opset = request.param
    recipe = ExportRecipe(stages=(2, 4), opset=opset)
    exported = bundles(tiny_llava_onevision, num_layers=6, recipe=recipe, **SHAPES[shape])
    return open_pair(exported, ReferenceLlavaOnevision)


@pytest.mark.parametrize("name", ODD_PICTURES)
def test_odd_pictures(pair: Pair, name: str) -> None:
    check_pictures(pair, [odd_picture(name)])


@pytest.mark.parametrize("count", [0, 3])
def test_prompts_with_no_picture_and_several(pair: Pair, count: int) -> None:
    check_pictures(pair, [odd_picture(name) for name in ODD_PICTURES[:count]])


@pytest.mark.parametrize("count", [1, 2])
def test_unpruned(pair: Pair, count: int) -> None:
    check_unpruned(pair, random_images(count))
    check_reference(pair, random_images(count))


@pytest.mark.parametrize(("width", "height"), [(211, 5), (2, 190), (90, 30), (101, 97)])
def test_pictures_of_many_shapes(pair: Pair, width: int, height: int) -> None:
    # The first two lose all rows, and all columns, of their stitched raster.
    check_unpruned(pair, [elongated(width, height)])
    check_pruned(pair, [elongated(width, height)], "feather", "fill")


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("method", "selection"), KINDS)
def test_pruned(pair: Pair, method: str, selection: str, count: int) -> None:
    check_pruned(pair, random_images(count, seed=count), method, selection)


@pytest.mark.parametrize("size", [(120, 80), (70, 160), (200, 70), (60, 60)], ids=str)
def test_regions(pair: Pair, size: tuple[int, int]) -> None:
    check_regions(pair, size=size)


def test_a_large_raster_is_scaled_down(bundles: BundleFactory) -> None:
    recipe = ExportRecipe(stages=(2, 4))
    exported = bundles(tiny_llava_onevision, num_layers=6, recipe=recipe, **SHAPES["qwen2"])

    fit = exported.bundle.manifest.image.fit((101, 97))

    assert fit.seen == (12, 12)  # 3 x 3 tiles of 4 x 4 tokens
    assert fit.kept == (6, 6)  # no more than 3 tiles have


def test_names_of_other_releases(bundles: BundleFactory, tmp_path: Path) -> None:
    recipe = ExportRecipe(stages=(2, 4))
    exported = bundles(tiny_llava_onevision, num_layers=6, recipe=recipe, **SHAPES["qwen2"])
    check_renamed(exported, tmp_path, NAMES)


def test_another_way_of_tiling_is_refused(bundles: BundleFactory, tmp_path: Path) -> None:
    source = bundles.checkpoint(tiny_llava_onevision, num_layers=6, **SHAPES["qwen2"])
    folder = edited_checkpoint(
        source, tmp_path / "c", config=lambda config: config.update(vision_aspect_ratio="pad")
    )

    with pytest.raises(UnsupportedModelError, match="vision_aspect_ratio is 'pad'; supported is"):
        export(folder, tmp_path / "bundle", ExportRecipe())


def test_video_is_refused(pair: Pair) -> None:
    content = [{"type": "video"}, {"type": "text", "text": "what happens ?"}]

    with pytest.raises(RequestError, match="is a video, which is not supported; allowed are"):
        pair.session.generate([], [{"role": "user", "content": content}])
