from __future__ import annotations

import json

import msgspec
import pytest
from support.image_processors import PROCESSORS, raw_config
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from feather_edge.checkpoint.preprocessing import (
    PreprocessConfig,
    preprocess_config,
    read_preprocess_config,
)
from feather_edge.errors import CheckpointError, UnsupportedModelError


@pytest.mark.parametrize("processor", PROCESSORS)
def test_a_config_survives_the_manifest(processor):
    config = preprocess_config(raw_config(PROCESSORS[processor]))
    encoded = msgspec.json.encode(config)
    assert msgspec.json.decode(encoded, type=PreprocessConfig) == config
    with pytest.raises(msgspec.ValidationError, match="unknown field `x`"):
        msgspec.json.decode(b'{"x": 1}', type=PreprocessConfig)


@pytest.mark.parametrize(
    ("name", "processor"),
    [
        ("CLIPImageProcessorFast", CLIPImageProcessorPil()),
        ("CLIPFeatureExtractor", CLIPImageProcessorPil()),
        ("SiglipImageProcessorFast", SiglipImageProcessorPil()),
        ("LlavaImageProcessor", LlavaImageProcessorPil()),
    ],
)
def test_class_defaults_are_those_of_transformers(name, processor):
    key = "feature_extractor_type" if "Feature" in name else "image_processor_type"
    assert preprocess_config({key: name, "size": None}) == preprocess_config(raw_config(processor))


def test_sizes_as_old_files_write_them():
    old = {"image_processor_type": "CLIPImageProcessor", "size": 30, "crop_size": 28}
    new = CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size=28)
    assert preprocess_config(old) == preprocess_config(raw_config(new))
    pair = {"image_processor_type": "SiglipImageProcessor", "size": [28, 42]}
    assert preprocess_config(pair).resize_to == (28, 42)


def test_one_mean_for_all_channels():
    raw = {"image_processor_type": "SiglipImageProcessor", "image_mean": 0.25}
    assert preprocess_config(raw).mean == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("named", ["Qwen2VLImageProcessor", None])
def test_other_processors_are_refused(named):
    with pytest.raises(UnsupportedModelError) as error:
        preprocess_config({"image_processor_type": named})
    assert str(error.value) == (
        f"image preprocessing: image_processor_type {named or 'none'!r} is not supported; "
        "supported are CLIPImageProcessor, Gemma3ImageProcessor, LlavaImageProcessor, "
        "SiglipImageProcessor, each with or without Fast at the end"
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"size": {"longest_edge": 9}}, "size with longest_edge is not supported; supported"),
        ({"size": {}}, "size with nothing in it is not supported"),
        ({"do_pad": True}, "do_pad of CLIPImageProcessor is not supported"),
        ({"do_center_crop": False}, "has neither a crop nor a fixed size to resize to"),
    ],
)
def test_unsupported_settings(settings, expected):
    with pytest.raises(UnsupportedModelError) as error:
        preprocess_config({"image_processor_type": "CLIPImageProcessor", **settings})
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"resample": 9}, "resample is 9; it must be 0 to 5 (nearest, lanczos,"),
        ({"image_mean": [1, 2]}, "image_mean is [1, 2]; it must be three numbers"),
        ({"image_std": ["x"] * 3}, "image_std is 'x'; it must be a number"),
        ({"rescale_factor": "x"}, "rescale_factor is 'x'; it must be a number"),
        ({"crop_size": "x"}, "crop_size is 'x'; it must have a height and a width"),
        ({"crop_size": 0}, "crop_size has a side of 0; it must be 1 to 8192 pixels"),
        ({"crop_size": {"height": 3}}, "crop_size has a side of None; it must be"),
        ({"size": {"shortest_edge": 1e3}}, "size has a side of 1000.0; it must be 1 to"),
    ],
)
def test_senseless_values(settings, expected):
    with pytest.raises(CheckpointError) as error:
        preprocess_config({"image_processor_type": "CLIPImageProcessor", **settings})
    assert expected in str(error.value)


def write(folder, name, **document):
    (folder / name).write_text(json.dumps(document))


def test_the_older_layout(tmp_path):
    write(tmp_path, "processor_config.json", patch_size=14)
    write(tmp_path, "preprocessor_config.json", image_processor_type="SiglipImageProcessor")
    assert read_preprocess_config(tmp_path).resize_to == (224, 224)


def test_the_nested_layout_wins(tmp_path):
    nested = {"image_processor_type": "CLIPImageProcessorFast", "crop_size": 20}
    write(tmp_path, "processor_config.json", image_processor=nested)
    write(tmp_path, "preprocessor_config.json", image_processor_type="SiglipImageProcessor")
    assert read_preprocess_config(tmp_path).crop_to == (20, 20)


def test_no_preprocessing_in_the_folder(tmp_path):
    with pytest.raises(CheckpointError) as error:
        read_preprocess_config(tmp_path)
    assert str(error.value) == (
        f"{tmp_path} does not say how to preprocess images: it has no "
        "preprocessor_config.json and no processor_config.json with an image_processor; copy "
        "the file from the original checkpoint"
    )
