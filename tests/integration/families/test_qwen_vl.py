"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: native resolution, windows, M-RoPE, DeepStack."""

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING, Any

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
from support.reference import ReferencePruning

from feather_edge import Session
from feather_edge.engines.build import build_engines
from feather_edge.errors import (
    CheckpointError,
    RecipeError,
    RequestError,
    UnsupportedModelError,
)
from feather_edge.export.pipeline import export
from feather_edge.images import load_image
from feather_edge.pruning import Pruning
from feather_edge.recipes import ExportRecipe, load_engine_recipe, override_engine
from feather_edge.runtime.backends.fake import FakeBackend

if TYPE_CHECKING:
    from pathlib import Path

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


def test_a_picture_of_the_others_size_changes_nothing(pair: Pair) -> None:
    """Each picture has a call of its own: what one shows does not depend on the other."""
    first, second = random_images(2, seed=9)
    image = pair.session.bundle.manifest.image

    alone, together = (
        pair.session._vision(
            pair.session._graphs.vision(), image.prepare([load_image(each) for each in images])
        )
        for images in ([first], [first, second])
    )

    assert (together[:, : alone.shape[1]] == alone).all()
    assert together.shape[1] > alone.shape[1]


def test_a_robots_own_tests_run_on_the_fake_backend(pair: Pair) -> None:
    with Session.open(pair.session.bundle, backend=FakeBackend(token_ids=[7, 8])) as session:
        result = session.generate(random_images(2), "what ?", max_new_tokens=2)

    assert result.token_ids == (7, 8)
    assert [stage.before_layer for stage in result.stages] == list(STAGES)


def test_three_coordinates_cannot_be_numbered_anew(pair: Pair) -> None:
    with pytest.raises(RequestError, match="cannot be numbered anew in qwen.*, which has M-RoPE"):
        pair.session.generate(
            random_images(1), "what ?", pruning=Pruning(criterion="pyramiddrop-reset")
        )


def test_videos_are_refused(pair: Pair) -> None:
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "?"}]}]
    with pytest.raises(RequestError) as error:
        pair.session.generate([], messages)
    assert str(error.value) == (
        "content entry {'type': 'video'} is a video, which is not supported; allowed are image "
        "and text: give single frames of a video as images"
    )


def edit(file: Path, *path: str, value: Any) -> None:
    """Set one value of a JSON file."""
    document = json.loads(file.read_text())
    part = document
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    file.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("file", "path", "value", "message"),
    [
        ("preprocessor_config", ["patch_size"], 16, "has patch_size 16, but the vision encoder"),
        ("config", ["vision_config", "out_hidden_size"], 32, "of width 32, but the decoder has"),
        ("config", ["vision_config", "num_heads"], 3, "must be a multiple of 4 times num_heads 3"),
        ("config", ["vision_config", "window_size"], 9, "window_size 9 must be at least the 28"),
        ("config", ["vision_config", "model_type"], "clip", "model_type 'clip', which is not"),
        (
            "config",
            ["vision_config", "fullatt_block_indexes"],
            7,
            "it must be a list of different",
        ),
        ("config", ["rope_scaling", "mrope_section"], [1, 1, 1], "must sum to half of head_dim"),
        ("config", ["rope_scaling", "mrope_section"], [8], "it must be three counts of at least"),
        ("config", ["rope_scaling", "type"], "yarn", "rope scaling of type 'yarn' is not"),
        ("config", ["text_config"], 5, "text_config is 5; it must be an object"),
        ("config", ["text_config"], {"model_type": "llama"}, "model_type 'llama', which is not"),
        ("config", ["vision_config", "depth"], 2, "has no place in the exported graphs"),
    ],
)
def test_checkpoints_that_are_refused(
    tmp_path: Path, file: str, path: list[str], value: object, message: str
) -> None:
    checkpoint = tiny_qwen_vl(tmp_path / "c", model_type="qwen2_5_vl", layout="hub")
    edit(checkpoint / f"{file}.json", *path, value=value)

    with pytest.raises((CheckpointError, UnsupportedModelError), match=message):
        export(checkpoint, tmp_path / "bundle", ExportRecipe())


@pytest.mark.parametrize("stages", [(1, 4), None], ids=str)
def test_stages_before_the_last_plane_are_refused(
    tmp_path: Path, stages: tuple[int, ...] | None
) -> None:
    checkpoint = tiny_qwen_vl(tmp_path / "c", model_type="qwen3_vl", layout="saved")

    with pytest.raises(RecipeError) as error:
        export(checkpoint, tmp_path / "bundle", ExportRecipe(stages=stages))

    assert str(error.value) == (
        f"stages {stages or (1, 3)}: this model adds visual features to its visual tokens after "
        f"each of the layers 0 to 1, so they can be pruned before layer 2 at the earliest; name "
        f"other stages"
    )
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop"])
def test_pruned_before_the_decoder_too(pair: Pair, method: str) -> None:
    """Planes and coordinates follow the rows that are left."""
    images, prompt = random_images(2, seed=11), "where is the red circle ?"
    pruning = Pruning(
        criterion=method, keep_ratio=(0.4, 0.2), pre_criterion="divprune", pre_keep_ratio=0.5
    )

    result = pair.session.generate(images, prompt, pruning=pruning, max_new_tokens=8)

    before, *stages = result.stages
    expected = pair.reference.run(
        pair.reference.prepare(list(images), prompt),
        ReferencePruning(
            method=method,
            stages=STAGES,
            keep_ratio=(0.4, 0.2),
            pre_kept=tuple(before.kept_indices.tolist()),
        ),
        max_new_tokens=8,
    )
    assert [stage.kept_indices.tolist() for stage in stages] == [s.kept for s in expected.stages]
    assert list(result.token_ids) == expected.token_ids


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="needs the extra rtx")
@pytest.mark.parametrize(
    ("model_type", "layout", "opset"),
    [("qwen2_5_vl", "hub", "18"), ("qwen2_5_vl", "hub", "23"), ("qwen3_vl", "saved", "23")],
)
def test_engines_build(tmp_path: Path, model_type: str, layout: str, opset: str) -> None:
    """Windows with their mask, and planes of DeepStack, in a real TensorRT builder."""
    checkpoint = tiny_qwen_vl(
        tmp_path / "c", model_type=model_type, layout=layout, num_hidden_layers=2
    )
    recipe = ExportRecipe(precision="fp16", prune="none", opset=opset)
    bundle = export(checkpoint, tmp_path / "bundle", recipe)
    quick = {"compute_capabilities": ("8.6",), "builder_optimization_level": 0}

    engines = override_engine(load_engine_recipe("rtx"), opset=opset, **quick)

    report = build_engines(bundle, engines, target="rtx")
    assert [engine.graph for engine in report.engines] == ["vision_encoder", "decoder_0"]
