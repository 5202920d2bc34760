"""Pictures at their own resolution: sizes, windows and rotary tables as transformers has them."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from transformers import vision_utils
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionRotaryEmbedding
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from feather_edge.checkpoint.patch_preprocessing import (
    PatchPreprocessConfig,
    patch_preprocess_config,
)
from feather_edge.errors import CheckpointError, RequestError, UnsupportedModelError
from feather_edge.images import NativeImages

PUBLISHED = PatchPreprocessConfig(
    min_pixels=56 * 56, max_pixels=28 * 28 * 1280, patch_size=14, temporal_patch_size=2,
    merge_size=2,
)  # fmt: skip


def native(**options: Any) -> NativeImages:
    fields: dict[str, Any] = {
        "token_id": 7, "preprocess": PUBLISHED, "head_dim": 80, "window_size": 4,
    }  # fmt: skip
    return NativeImages(**(fields | options))


def test_sizes_are_those_of_transformers() -> None:
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(0, 9, (2000, 2))).astype(int).tolist()
    sizes += [(1, 1), (1, 200), (200, 1), (41, 8200), (640, 480), (1920, 1080), (4032, 3024)]
    for width, height in sizes:
        if max(width, height) > 200 * min(width, height):
            continue
        expected = smart_resize(
            height, width, factor=28, min_pixels=PUBLISHED.min_pixels,
            max_pixels=PUBLISHED.max_pixels,
        )  # fmt: skip
        view = native().geometry((width, height))
        assert view.view_size == expected[::-1]
        assert view.to_view((0, 0, width, height)) == pytest.approx((0, 0, *view.view_size))


def test_an_elongated_picture_is_refused() -> None:
    with pytest.raises(RequestError) as error:
        native().geometry((201, 1))
    assert str(error.value) == (
        "image of 201 x 1 pixels is too elongated for this model; its longer side may be at most "
        "200 times the shorter: crop or pad it"
    )


@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (5, 3), (9, 14), (1, 23)], ids=str)
def test_windows_are_those_of_transformers(grid: tuple[int, int]) -> None:
    thw = torch.tensor([[1, 2 * grid[0], 2 * grid[1]]])
    order, ends = vision_utils.get_vision_window_index(
        thw, spatial_merge_size=2, window_size=112, patch_size=14
    )
    parts = np.split(order.numpy(), (ends[1:-1] // 4).tolist())
    expected = {frozenset(part) for part in parts}

    tables = native()._windows(grid)

    is_patch = tables["window_mask"][:, 0, 0]
    is_token = is_patch[:, ::4]
    assert (is_patch == is_token.repeat(4, axis=1)).all()
    pairs = zip(tables["window_index"], is_token, strict=True)
    assert {frozenset(index[seen]) for index, seen in pairs} == expected
    assert (tables["window_mask"] == is_patch[:, None, None, :]).all()
    slots = tables["window_slots"]
    assert tables["window_index"].ravel()[slots].tolist() == list(range(grid[0] * grid[1]))
    assert is_token.ravel()[slots].all()


@pytest.mark.parametrize("theta", [10_000.0, 500.0])
def test_rotary_tables_are_those_of_transformers(theta: float) -> None:
    config = Qwen2_5_VLVisionConfig(
        hidden_size=160, num_heads=2, rope_parameters={"rope_type": "axial", "rope_theta": theta}
    )
    places = vision_utils.get_vision_position_ids(torch.tensor([[1, 6, 10]]), 2)
    expected = Qwen2_5_VLVisionRotaryEmbedding(config)(torch.zeros(1), places)

    for ours, theirs in zip(native(rope_theta=theta)._rotary((3, 5)), expected, strict=True):
        np.testing.assert_allclose(ours.reshape(60, 40), theirs[:, :40].numpy(), atol=1e-6)


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (24, 24), (30, 7), (1, 40)], ids=str)
def test_learned_positions_are_stretched_as_in_transformers(grid: tuple[int, int]) -> None:
    index, weights = vision_utils.get_vision_interpolation_indices_and_weights(
        torch.tensor([[1, 2 * grid[0], 2 * grid[1]]]),
        num_grid_per_side=48,
        align_corners=True,
        spatial_merge_size=2,
    )
    table = np.random.default_rng(0).standard_normal((48**2, 3), np.float32)
    expected = (table[index.numpy()] * weights.numpy()[:, :, None]).sum(axis=1)

    tables = native(window_size=0, position_side=48)._tables(grid)

    found = table[tables["position_index"]] * tables["position_weights"][..., None]
    np.testing.assert_allclose(found.sum(axis=2).reshape(-1, 3), expected, atol=1e-5)


def test_dimensions_of_engines_hold_every_picture_of_so_many_tokens() -> None:
    image = native()
    for max_visual_tokens in (1, 5, 391, 1000):
        dims = image.vision_dims(max_visual_tokens)
        assert dims["visual_tokens"][::2] == (1, max_visual_tokens)
        for low, usual, high in dims.values():
            assert low <= usual <= high
    rng = np.random.default_rng(1)
    for width, height in np.exp(rng.uniform(3, 8, (500, 2))).astype(int).tolist():
        if max(width, height) <= 200 * min(width, height):
            rows, columns = image._grid((width, height))
            dims = image.vision_dims(rows * columns)
            assert len(image._windows((rows, columns))["window_index"]) <= dims["num_windows"][2]


def test_a_camera_picture_is_typical() -> None:
    assert native().typical_grids == ((17, 23),)
    assert native(window_size=0).vision_dims(2048) == {"visual_tokens": (1, 391, 2048)}


@pytest.mark.parametrize(
    ("raw", "limits"),
    [
        ({}, (3136, 1003520)),
        ({"min_pixels": 5000, "max_pixels": 9000}, (5000, 9000)),
        ({"size": {"shortest_edge": 5000, "longest_edge": 9000}}, (5000, 9000)),
        ({"size": {"min_pixels": 5000, "max_pixels": 9000}}, (5000, 9000)),
        ({"size": {"shortest_edge": 1, "longest_edge": 2}, "max_pixels": 9000}, (1, 9000)),
    ],
)
def test_limits_in_all_their_spellings(raw: dict[str, Any], limits: tuple[int, int]) -> None:
    config = patch_preprocess_config({"image_processor_type": "Qwen2VLImageProcessorFast", **raw})
    assert (config.min_pixels, config.max_pixels) == limits
    assert (config.patch_size, config.temporal_patch_size, config.merge_size) == (14, 2, 2)
    assert config.mean == (0.48145466, 0.4578275, 0.40821073)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "is not supported for this family"),
        ({"do_resize": False}, "do_resize is off"),
        ({"size": 7}, "size is 7; it must be an object"),
        ({"min_pixels": 9, "max_pixels": 8}, "at least 9 and at most 8 pixels, which none has"),
        ({"max_pixels": 2**31}, "max_pixels is 2147483648; it must be 1 to 67108864"),
        ({"temporal_patch_size": 9}, "temporal_patch_size is 9; it must be 1 to 8"),
        ({"resample": 9}, "resample is 9; it must be 0 to 5"),
        ({"image_mean": [0.5]}, "image_mean is .*; it must be 3 numbers"),
        ({"patch_size": 0}, "patch_size is 0; it must be an integer of at least 1"),
    ],
)
def test_settings_that_are_refused(raw: dict[str, Any], message: str) -> None:
    with pytest.raises((CheckpointError, UnsupportedModelError), match=message):
        patch_preprocess_config({"image_processor_type": "Qwen2VLImageProcessor", **raw})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_dim": 6}, "head_dim is 6; it must be a multiple of 4, up to 1024"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0; it must be a number above 0"),
        ({"window_size": 17}, "a window has 34 patches a side; it must be 0 to 32"),
        ({"position_side": -1}, "position_side is -1; it must be 0 to 4096"),
    ],
)
def test_manifests_that_are_refused(options: dict[str, Any], message: str) -> None:
    raw = {**msgspec.to_builtins(native()), **options}
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(raw, NativeImages)


def test_a_picture_of_too_many_patches_is_refused() -> None:
    config = msgspec.structs.replace(PUBLISHED, max_pixels=2**26)
    with pytest.raises(RequestError) as error:
        native(preprocess=config).geometry((8000, 8000))
    assert str(error.value) == (
        "image of 8000 x 8000 pixels becomes 327184 patches, but at most 131072 are allowed: "
        "scale it down or crop it"
    )
