"""Idefics3 and SmolVLM: tiles in rows and columns, pixel shuffle, a Llama decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from support.families.idefics3 import Idefics3Reference, image_processor, tiny_idefics3
from support.family_checks import (
    STAGES,
    check_pictures,
    check_prompt,
    check_pruned,
    check_regions,
    check_unpruned,
    check_visual_tokens,
    open_session,
)
from support.image_processors import raw_config
from support.images import ODD_PICTURES, noise, random_images
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionEmbeddings
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from feather_edge.checkpoint.split_preprocessing import split_config
from feather_edge.errors import CheckpointError, RequestError, UnsupportedModelError
from feather_edge.export.families.idefics3 import position_ids
from feather_edge.export.pipeline import export
from feather_edge.images import SplitImages
from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from pathlib import Path

    from feather_edge import Session


KINDS = ("idefics3", "smolvlm")
PICTURES = {"square": (40, 40), "wide": (90, 30), "tall": (20, 70), "panorama": (300, 4)}


@dataclass(frozen=True, kw_only=True)
class Made:
    """A tiny checkpoint, its session and its reference."""

    checkpoint: Path
    session: Session
    reference: Idefics3Reference


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = tiny_idefics3(folder / "checkpoint", request.param)
    bundle = export(checkpoint, folder / "bundle", ExportRecipe(stages=STAGES, opset="23"))
    return Made(
        checkpoint=checkpoint,
        session=open_session(bundle),
        reference=Idefics3Reference(checkpoint),
    )


def layout(session: Session) -> SplitImages:
    image = session.bundle.manifest.image
    assert isinstance(image, SplitImages)
    return image


def test_pictures_are_cut_as_the_processor_cuts_them(made: Made) -> None:
    pictures = {**ODD_PICTURES, **{name: noise(*size) for name, size in PICTURES.items()}}
    expected = {
        name: made.reference.processor.image_processor(picture, return_tensors="np")[
            "pixel_values"
        ][0]
        for name, picture in pictures.items()
    }

    check_pictures(layout(made.session), pictures, expected)


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

    check_pictures(image, pictures, expected)


@pytest.mark.parametrize("num_images", [0, 1, 2])
def test_prompt(made: Made, num_images: int) -> None:
    check_prompt(made.session, made.reference, random_images(num_images))


def test_the_text_around_tiles_is_that_of_smolvlm(made: Made) -> None:
    image = layout(made.session)
    num_tokens = image.tile_grid[0] * image.tile_grid[1]
    for size in PICTURES.values():
        (pieces,) = image.prepare([noise(*size)]).prompt_pieces
        rows, columns = image._tiles(size)
        expected = get_image_prompt_string(
            rows, columns, num_tokens, "<fake_token_around_image>", "<image>", "<global-img>"
        )
        text = "".join(piece if isinstance(piece, str) else "<image>" * piece for piece in pieces)
        assert text == expected


def test_visual_tokens(made: Made) -> None:
    check_visual_tokens(made.session, made.reference, random_images(2))


@pytest.mark.parametrize("num_images", [0, 1, 2])
def test_unpruned_answers_are_those_of_transformers(made: Made, num_images: int) -> None:
    check_unpruned(made.session, made.reference, random_images(num_images, seed=3))


@pytest.mark.parametrize("num_images", [1, 2])
@pytest.mark.parametrize(
    ("method", "selection"), [("feather", "fill"), ("feather", "union"), ("fastv", "fill")]
)
def test_pruned_answers_are_those_of_the_reference(
    made: Made, method: str, selection: str, num_images: int
) -> None:
    images = random_images(num_images, seed=5)

    check_pruned(made.session, made.reference, images, method, selection)


def test_the_older_operators_answer_the_same(made: Made, tmp_path: Path) -> None:
    bundle = export(made.checkpoint, tmp_path / "b", ExportRecipe(stages=STAGES, opset="18"))
    session = open_session(bundle)

    check_unpruned(session, made.reference, random_images(1, seed=3))
    check_pruned(session, made.reference, random_images(1, seed=4), "fastv", "fill")


def test_a_bundle_without_splitting_has_one_raster_for_a_picture(tmp_path: Path) -> None:
    checkpoint = tiny_idefics3(
        tmp_path / "checkpoint",
        "smolvlm",
        processor_overrides={"do_image_splitting": False},
        tie_word_embeddings=True,
    )
    bundle = export(checkpoint, tmp_path / "bundle", ExportRecipe(stages=STAGES))
    session, reference = open_session(bundle), Idefics3Reference(checkpoint)
    images = random_images(2, seed=8)

    check_prompt(session, reference, images)
    check_unpruned(session, reference, images)
    check_pruned(session, reference, images, "feather", "fill", keep_ratio=(0.4, 0.3))


@pytest.mark.parametrize("name", PICTURES)
def test_regions_are_found_in_every_tile(made: Made, name: str) -> None:
    check_regions(made.session, noise(*PICTURES[name]))


@pytest.mark.parametrize("name", PICTURES)
def test_rasters_lie_where_the_tiles_show_the_picture(made: Made, name: str) -> None:
    """A white box in a black picture lights up the tokens whose raster says that they show it."""
    image, (width, height) = layout(made.session), PICTURES[name]
    picture = Image.new("RGB", (width, height))
    box = (width // 3, height // 3, width // 3 + max(2, width // 6), height // 3 + 2)
    picture.paste((255, 255, 255), box)
    prepared = image.prepare([picture])

    for pixels, raster in zip(prepared.inputs["pixel_values"], prepared.rasters, strict=True):
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


def test_videos_are_refused(made: Made) -> None:
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "?"}]}]
    with pytest.raises(RequestError, match="is a video, which is not supported; allowed are"):
        made.session.generate([], messages)


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
