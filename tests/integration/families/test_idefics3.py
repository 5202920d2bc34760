"""Idefics3 and SmolVLM: tiles in rows and columns, pixel shuffle, a Llama decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from support.families.idefics3 import Idefics3Reference, image_processor, tiny_idefics3
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
from support.image_processors import raw_config
from support.images import noise, random_images
from support.pairs import Pair, open_pair
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionEmbeddings
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from feather_edge.checkpoint.split_preprocessing import split_config
from feather_edge.errors import CheckpointError, RequestError, UnsupportedModelError
from feather_edge.export.families.idefics3 import position_ids
from feather_edge.export.pipeline import export
from feather_edge.images import SplitImages
from feather_edge.recipes import ExportRecipe
from feather_edge.viz import visualise

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory

    from feather_edge import Session

RECIPE = ExportRecipe(stages=(2, 4))
PICTURES = {"square": (40, 40), "wide": (90, 30), "tall": (20, 70), "panorama": (300, 4)}


@pytest.fixture(scope="module", params=["idefics3", "smolvlm"])
def pair(request: pytest.FixtureRequest, bundles: BundleFactory) -> Pair:
    exported = bundles(tiny_idefics3, recipe=RECIPE, kind=request.param)
    return open_pair(exported, Idefics3Reference)


def layout(session: Session) -> SplitImages:
    image = session.bundle.manifest.image
    assert isinstance(image, SplitImages)
    return image


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


@pytest.mark.parametrize("seed", [0, 1])
def test_regions(pair: Pair, seed: int) -> None:
    check_regions(pair, seed=seed)


@pytest.mark.parametrize("opset", ["24", "18"])
@pytest.mark.parametrize("kind", ["idefics3", "smolvlm"])
def test_other_forms(bundles: BundleFactory, opset: str, kind: str) -> None:
    recipe = ExportRecipe(stages=(2, 4), opset=opset)
    pair = open_pair(bundles(tiny_idefics3, recipe=recipe, kind=kind), Idefics3Reference)

    check_unpruned(pair, random_images(1))
    check_pruned(pair, random_images(1), "fastv", "fill")


def test_without_splitting_a_picture_is_one_raster(bundles: BundleFactory) -> None:
    exported = bundles(
        tiny_idefics3,
        recipe=RECIPE,
        kind="smolvlm",
        processor_overrides={"do_image_splitting": False},
        tie_word_embeddings=True,
    )
    pair = open_pair(exported, Idefics3Reference)

    check_pictures(pair, [odd_picture("panorama"), odd_picture("grey")])
    check_unpruned(pair, random_images(2))
    check_pruned(pair, random_images(2), "feather", "fill")


@pytest.mark.parametrize(
    "overrides",
    [
        {"do_image_splitting": False},
        {"do_resize": False},
        {"size": {"height": 61, "width": 83}, "resample": 2},
        {"do_normalize": False, "do_rescale": False},
        {"size": {"longest_edge": 5000}},
    ],
    ids=str,
)
def test_settings_of_the_processor(overrides: dict[str, object]) -> None:
    processor = image_processor("smolvlm", **overrides)
    split = split_config(raw_config(processor))
    image = SplitImages(
        token_id=0,
        tile_side=split.tile_side,
        seen_side=split.tile_side,
        tile_grid=(4, 4),
        longest_edge=split.longest_edge,
        is_split=split.is_split,
        pixels=split.pixels,
    )
    sizes = ((29, 31), (300, 7)) if split.longest_edge != 5000 else ((3, 5000),)
    pictures = {str(size): noise(*size) for size in sizes}
    expected = {
        name: processor(picture, return_tensors="np")["pixel_values"][0]
        for name, picture in pictures.items()
    }

    for name, picture in pictures.items():
        pixels = image.prepare([picture]).calls[0]["pixel_values"]
        np.testing.assert_array_equal(pixels, expected[name], err_msg=name)


def test_the_text_around_tiles_is_that_of_smolvlm(pair: Pair) -> None:
    image = layout(pair.session)
    num_tokens = image.tile_grid[0] * image.tile_grid[1]
    for size in PICTURES.values():
        (pieces,) = image.prepare([noise(*size)]).prompt_pieces
        rows, columns = image._tiles(size)
        expected = get_image_prompt_string(
            rows, columns, num_tokens, "<fake_token_around_image>", "<image>", "<global-img>"
        )
        text = "".join(piece if isinstance(piece, str) else "<image>" * piece for piece in pieces)
        assert text == expected


@pytest.mark.parametrize("name", PICTURES)
def test_rasters_lie_where_the_tiles_show_the_picture(pair: Pair, name: str) -> None:
    """A white box in a black picture lights up the tokens whose raster says that they show it."""
    image, (width, height) = layout(pair.session), PICTURES[name]
    picture = Image.new("RGB", (width, height))
    box = (width // 3, height // 3, width // 3 + max(2, width // 6), height // 3 + 2)
    picture.paste((255, 255, 255), box)
    prepared = image.prepare([picture])

    for pixels, raster in zip(prepared.calls[0]["pixel_values"], prepared.rasters, strict=True):
        cell = image.seen_side // raster.height
        x0, y0, x1, y1 = raster.box
        for token in np.ndindex(raster.height, raster.width):
            row, column = token
            light = pixels[0, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
            left = x0 + (x1 - x0) * column / raster.width
            top = y0 + (y1 - y0) * row / raster.height
            right, bottom = left + (x1 - x0) / raster.width, top + (y1 - y0) / raster.height
            shows = left < box[2] and right > box[0] and top < box[3] and bottom > box[1]
            within = left >= box[0] and right <= box[2] and top >= box[1] and bottom <= box[3]
            if light.mean() > 0.5:  # grey levels are -1 to 1
                assert shows, (raster, token)
            if within:
                assert light.mean() > 0


@pytest.mark.parametrize(("tile", "table"), [(26, 26), (27, 27), (32, 32), (24, 32), (13, 26)])
def test_position_ids_of_published_sizes(tile: int, table: int) -> None:
    config = transformers.Idefics3VisionConfig(
        hidden_size=8, num_attention_heads=1, image_size=table * 2, patch_size=2
    )
    embeddings = Idefics3VisionEmbeddings(config)
    with torch.no_grad():
        embeddings.patch_embedding.weight.zero_()
        embeddings.patch_embedding.bias.zero_()
        embeddings.position_embedding.weight.copy_(torch.arange(table**2)[:, None].expand(-1, 8))
        pixels = torch.zeros(1, 3, tile * 2, tile * 2)
        rows = embeddings(pixels, torch.ones(1, tile, tile, dtype=torch.bool))[0, :, 0]

    assert position_ids(tile, table) == rows.int().tolist()


def test_tiles_and_the_whole_picture_are_drawn(pair: Pair) -> None:
    assert visualise(pair.session, noise(60, 30), "where ?", panel_size=80).sheet


def test_videos_are_refused(pair: Pair) -> None:
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "?"}]}]
    with pytest.raises(RequestError, match="is a video, which is not supported; allowed are"):
        pair.session.generate([], messages)


def test_tiles_that_do_not_fit_the_tower_are_refused(tmp_path: Path) -> None:
    checkpoint = tiny_idefics3(
        tmp_path / "c", "smolvlm", processor_overrides={"max_image_size": {"longest_edge": 20}}
    )
    with pytest.raises(CheckpointError, match="tiles of 20 pixels are 5 patches of 4 wide, which"):
        export(checkpoint, tmp_path / "bundle", ExportRecipe())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "does not cut pictures into tiles"),
        ({"size": {"shortest_edge": 9}}, "supported are longest_edge alone, or height and width"),
        ({"max_image_size": {"longest_edge": 0}}, "it must have a longest_edge of 1 to 8192"),
        ({"max_image_size": 364}, "it must have a longest_edge of 1 to 8192"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises((CheckpointError, UnsupportedModelError), match=message):
        split_config(settings)
