"""InternVL: tiles and a thumbnail, InternViT in its variants, pixel shuffle."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.edits import edited_checkpoint
from support.families.internvl import ReferenceInternVl, tiny_internvl
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
from support.pairs import Pair, TracingBackend, open_pair

from feather_edge import Pruning, Region, Session
from feather_edge.errors import CheckpointError, FeatherEdgeError, UnsupportedModelError
from feather_edge.export.pipeline import export
from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory

SHAPES = {
    "qwen2": {"image_size": 56, "max_position_embeddings": 2048},
    # As InternVL with the 6B tower: RMS norms, normalised queries and keys, no attention bias.
    "tied-qwen3": {
        "text": "qwen3",
        "tie_word_embeddings": True,
        "downsample_ratio": 0.25,
        "image_size": 112,
        "min_patches": 2,
        "max_patches": 4,
        "vision_overrides": {"norm_type": "rms_norm", "use_qk_norm": True},
    },
}
VARIANTS = {
    "llama": {"text": "llama"},
    "biases": {"vision_overrides": {"attention_bias": True}},
    "final-norm": {"vision_overrides": {"use_mean_pooling": False}},
    "final-norm-unused": {
        "vision_overrides": {"use_mean_pooling": False},
        "config_overrides": {"vision_feature_layer": 3},
    },
    "earlier-layer": {"config_overrides": {"vision_feature_layer": -3}},
    "no-positions": {"vision_overrides": {"use_absolute_position_embeddings": False}},
    "other-epsilon": {"vision_overrides": {"norm_type": "rms_norm", "layer_norm_eps": 1e-2}},
    "one-tile": {"max_patches": 1},
    # As published InternVL3 has it; without effect up to max_position_embeddings.
    "dynamic-rope": {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0}
    },
}
NAMES = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)


FORMS = [("qwen2", "24"), ("qwen2", "18"), ("tied-qwen3", "23"), ("tied-qwen3", "18")]


@pytest.fixture(scope="module", params=FORMS, ids="-".join)
def pair(request: pytest.FixtureRequest, bundles: BundleFactory) -> Pair:
    shape, opset = request.param
    recipe = ExportRecipe(stages=(2, 4), opset=opset)
    exported = bundles(tiny_internvl, num_layers=6, recipe=recipe, **SHAPES[shape])
    return open_pair(exported, ReferenceInternVl)


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


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(bundles: BundleFactory, variant: str) -> None:
    recipe = ExportRecipe(stages=(1,), prune="fastv", opset="23")
    exported = bundles(tiny_internvl, recipe=recipe, **VARIANTS[variant])
    check_unpruned(open_pair(exported, ReferenceInternVl), [elongated(60, 41)])


@pytest.mark.parametrize(("width", "height"), [(211, 5), (2, 190), (90, 30)])
def test_elongated_pictures(pair: Pair, width: int, height: int) -> None:
    check_unpruned(pair, [elongated(width, height)])
    check_pruned(pair, [elongated(width, height)], "feather", "fill")


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("method", "selection"), KINDS)
def test_pruned(pair: Pair, method: str, selection: str, count: int) -> None:
    check_pruned(pair, random_images(count, seed=count), method, selection)


@pytest.mark.parametrize("size", [(120, 80), (70, 160), (200, 70), (60, 60)], ids=str)
def test_regions(pair: Pair, size: tuple[int, int]) -> None:
    check_regions(pair, size=size)


@pytest.mark.parametrize("pre_criterion", ["none", "uniform", "divprune", "dart", "cdpruner"])
@pytest.mark.parametrize("criterion", ["feather", "fastv", "pyramiddrop", "ivc", "random"])
def test_tiles_that_are_forbidden_as_a_whole(
    bundles: BundleFactory, criterion: str, pre_criterion: str
) -> None:
    recipe = ExportRecipe(stages=(2, 4))
    exported = bundles(tiny_internvl, num_layers=6, recipe=recipe, **SHAPES["qwen2"])
    pruning = Pruning(criterion=criterion, pre_criterion=pre_criterion, pre_keep_ratio=0.5)
    right = Region(box=(50, 0, 120, 80), rule="forbid")  # of 3 x 2 tiles, each 40 x 40

    with Session.open(exported.bundle, backend=TracingBackend()) as session:
        result = session.generate(
            [elongated(120, 80)], "what ?", pruning=pruning, regions=[right], max_new_tokens=1
        )

    per_tile = [[0, 0] for _ in result.rasters]
    for number, stage in enumerate(result.stages[-2:]):
        for index in stage.kept_indices:
            per_tile[index // 16][number] += 1
    assert [min(kept) > 0 for kept in per_tile] == [True, True, False, True, True, False, True]
    assert per_tile[2] == per_tile[5] == [0, 0]


def test_names_of_other_releases(bundles: BundleFactory, tmp_path: Path) -> None:
    recipe = ExportRecipe(stages=(2, 4))
    exported = bundles(tiny_internvl, num_layers=6, recipe=recipe, **SHAPES["qwen2"])
    check_renamed(exported, tmp_path, NAMES)


def test_the_checkpoint_knows_whether_its_head_is_tied(
    bundles: BundleFactory, tmp_path: Path
) -> None:
    recipe = ExportRecipe(stages=(2, 4))
    exported = bundles(tiny_internvl, num_layers=6, recipe=recipe, **SHAPES["qwen2"])
    folder = edited_checkpoint(
        exported.checkpoint,
        tmp_path / "c",
        config=lambda config: config.pop("tie_word_embeddings"),
    )

    bundle = export(folder, tmp_path / "bundle", recipe)

    name = "onnx/decoder_2.onnx_data"
    assert bundle.manifest.files[name] == exported.bundle.manifest.files[name]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            {"vision_feature_select_strategy": "full"},
            UnsupportedModelError,
            "is 'full'; supported",
        ),
        ({"vision_feature_layer": [1, 2]}, CheckpointError, r"vision_feature_layer is \[1, 2\]"),
        (
            {"downsample_ratio": 0.3},
            UnsupportedModelError,
            "downsample_ratio 0.3 with images of 56",
        ),
        ({"downsample_ratio": 0.2}, UnsupportedModelError, "supported are ratios 1/n where n"),
        ({"vision_config": {"norm_type": "none"}}, UnsupportedModelError, "norm_type is 'none'"),
        ({"vision_config": {"image_size": [28, 56]}}, UnsupportedModelError, "is not square"),
        ({"vision_config": {"num_attention_heads": 7}}, CheckpointError, "must be a multiple of"),
    ],
)
def test_what_is_refused(
    bundles: BundleFactory,
    tmp_path: Path,
    change: dict[str, object],
    kind: type[FeatherEdgeError],
    message: str,
) -> None:
    source = bundles.checkpoint(tiny_internvl, num_layers=6, **SHAPES["qwen2"])
    folder = edited_checkpoint(source, tmp_path / "c", config=lambda config: config.update(change))

    with pytest.raises(kind, match=message):
        export(folder, tmp_path / "bundle", ExportRecipe())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_patches": 8}, "min_patches is 8 and max_patches 6; the second must be the larger"),
        ({"size": {"height": 28, "width": 28}}, r"makes tiles of \(28, 28\) pixels, but the"),
    ],
)
def test_tiles_that_are_refused(
    bundles: BundleFactory, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    source = bundles.checkpoint(tiny_internvl, num_layers=6, **SHAPES["qwen2"])
    folder = edited_checkpoint(source, tmp_path / "c")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))

    with pytest.raises(CheckpointError, match=message):
        export(folder, tmp_path / "bundle", ExportRecipe())
