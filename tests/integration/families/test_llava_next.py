"""LLaVA-NeXT: thumbnail and tiles, stitched, unpadded, with newlines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.edits import edited_checkpoint
from support.families.anyres import ReferenceLlavaNext, tiny_llava_next
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

from feather_edge import FakeBackend, Session
from feather_edge.errors import CheckpointError
from feather_edge.export.pipeline import export
from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory

SHAPES = {
    "clip-mistral": {"text": "mistral", "max_position_embeddings": 1024},
    # 45 pixels are three patches of 14 and a rest that nobody sees.
    "siglip-qwen2": {"vision": "siglip", "text": "qwen2", "image_size": 45, "patch_size": 14},
}
NAMES = (
    # As transformers saves them, and as 4.52 to 4.57 did.
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.", "model.vision_tower.vision_model."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("image_newline", "model.image_newline"),
)


FORMS = [
    ("clip-mistral", "24"),
    ("clip-mistral", "18"),
    ("siglip-qwen2", "23"),
    ("siglip-qwen2", "18"),
]


@pytest.fixture(scope="module", params=FORMS, ids="-".join)
def pair(request: pytest.FixtureRequest, bundles: BundleFactory) -> Pair:
    shape, opset = request.param
    recipe = ExportRecipe(stages=(2, 4), opset=opset)
    exported = bundles(tiny_llava_next, num_layers=6, recipe=recipe, **SHAPES[shape])
    return open_pair(exported, ReferenceLlavaNext)


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


@pytest.mark.parametrize(("width", "height"), [(211, 5), (2, 190), (90, 30)])
def test_elongated_pictures(pair: Pair, width: int, height: int) -> None:
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


def test_names_of_other_releases(bundles: BundleFactory, tmp_path: Path) -> None:
    exported = bundles(
        tiny_llava_next, num_layers=6, recipe=ExportRecipe(stages=(2, 4)), **SHAPES["clip-mistral"]
    )
    check_renamed(exported, tmp_path, NAMES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_grid_pinpoints": []}, "image_grid_pinpoints of config.json and of the image"),
        ({"image_grid_pinpoints": [[28, 56]]}, "of config.json and of the image processor differ"),
        ({"image_grid_pinpoints": [[28, 57]]}, r"image_grid_pinpoints has \[28, 57\]; height and"),
        ({"image_grid_pinpoints": "any"}, "image_grid_pinpoints is 'any'; it must be a list of"),
        ({"image_token_index": "<image>"}, "config.json: image_token_index is '<image>'; it must"),
    ],
)
def test_what_is_refused(
    bundles: BundleFactory, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    source = bundles.checkpoint(tiny_llava_next, num_layers=6, **SHAPES["clip-mistral"])
    folder = edited_checkpoint(source, tmp_path / "c", config=lambda config: config.update(change))

    with pytest.raises(CheckpointError, match=message):
        export(folder, tmp_path / "bundle", ExportRecipe())


def test_a_tile_of_another_size_is_refused(bundles: BundleFactory, tmp_path: Path) -> None:
    source = bundles.checkpoint(tiny_llava_next, num_layers=6, **SHAPES["clip-mistral"])
    folder = edited_checkpoint(source, tmp_path / "c")
    file = folder / "processor_config.json"
    processor = json.loads(file.read_text())
    processor["image_processor"]["crop_size"] = {"height": 14, "width": 14}
    file.write_text(json.dumps(processor))

    with pytest.raises(CheckpointError, match=r"tiles of \(28, 28\), cropped to \(14, 14\), but"):
        export(folder, tmp_path / "bundle", ExportRecipe())


def test_a_fake_backend_answers(bundles: BundleFactory) -> None:
    exported = bundles(tiny_llava_next, num_layers=6, **SHAPES["clip-mistral"])
    with Session.open(exported.bundle, backend=FakeBackend(token_ids=[5, 6])) as session:
        assert session.generate(elongated(60, 41), "what ?", max_new_tokens=2).token_ids == (5, 6)
