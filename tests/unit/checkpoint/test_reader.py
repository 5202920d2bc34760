from __future__ import annotations

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors.torch import save_file
from support.checkpoints import tiny_llava

from feather_edge.checkpoint.reader import Checkpoint, read_json_object, read_tensors
from feather_edge.errors import CheckpointError, UnsupportedModelError


@pytest.fixture
def folder(tmp_path):
    """A minimal checkpoint folder: a config and one safetensors file of two tensors."""
    tensors = {
        "layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "layer.bias": np.array([1.0, -2.0], np.float16),
    }
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def raw_safetensors(header, data=b""):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def entry(offsets, *, dtype="F32", shape=(2,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def shard(folder, weight_map):
    """Turn the folder's single file into a shard with an index."""
    (folder / "model.safetensors").rename(folder / "shard-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_tensors_are_listed_and_read(folder):
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.path == folder
    assert checkpoint.config == {"model_type": "llava"}
    assert checkpoint.generation_config == {}
    assert checkpoint.names() == ("layer.bias", "layer.weight")
    assert "layer.bias" in checkpoint
    assert "layer" not in checkpoint
    view = checkpoint.tensor("layer.weight")
    assert (view.name, view.shape, view.dtype, view.nbytes) == (
        "layer.weight",
        (2, 3),
        np.float32,
        24,
    )
    np.testing.assert_array_equal(view.read(), np.arange(6).reshape(2, 3))


def test_a_read_tensor_is_a_view_of_the_file_that_cannot_be_written(folder):
    array = Checkpoint.open(folder).tensor("layer.weight").read()
    assert type(array) is np.ndarray
    assert isinstance(array.base, np.memmap)
    assert not array.flags.writeable


@pytest.mark.parametrize(
    ("torch_dtype", "numpy_dtype"),
    [
        (torch.bfloat16, ml_dtypes.bfloat16),
        (torch.float16, np.float16),
        (torch.float64, np.float64),
        (torch.float8_e4m3fn, ml_dtypes.float8_e4m3fn),
        (torch.float8_e5m2, ml_dtypes.float8_e5m2),
        (torch.int64, np.int64),
        (torch.uint8, np.uint8),
        (torch.bool, np.bool_),
    ],
)
def test_data_types(folder, torch_dtype, numpy_dtype):
    values = torch.tensor([[1.0, 0.0, 1.0]]).to(torch_dtype)
    save_file({"x": values}, folder / "model.safetensors")
    view = Checkpoint.open(folder).tensor("x")
    assert view.dtype == numpy_dtype
    np.testing.assert_array_equal(view.read().astype(np.float32), [[1, 0, 1]])


def test_empty_and_scalar_tensors(folder):
    tensors = {"empty": np.empty((0, 4), np.float32), "scalar": np.array(7, np.int32)}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.tensor("empty").read().shape == (0, 4)
    assert checkpoint.tensor("scalar").read() == 7


@pytest.mark.parametrize("max_shard_size", ["5GB", "50KB"])
def test_every_tensor_of_a_saved_model(tmp_path, max_shard_size):
    folder = tiny_llava(tmp_path, max_shard_size=max_shard_size, dtype=torch.bfloat16)
    files = sorted(folder.glob("*.safetensors"))
    assert (len(files) > 1) == (max_shard_size == "50KB")
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.generation_config["eos_token_id"] == 2
    seen = set()
    for file in files:
        with safetensors.safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no dict
                seen.add(name)
                expected = opened.get_tensor(name).float().numpy()
                np.testing.assert_array_equal(
                    checkpoint.tensor(name).read().astype(np.float32), expected
                )
    assert set(checkpoint.names()) == seen


def test_links_into_another_folder_are_followed(folder, tmp_path_factory):
    cache = tmp_path_factory.mktemp("snapshot")
    for name in ("config.json", "model.safetensors"):
        (cache / name).symlink_to(folder / name)
    assert len(Checkpoint.open(cache).names()) == 2


def test_a_missing_tensor_lists_the_nearest_names(folder):
    with pytest.raises(CheckpointError) as error:
        Checkpoint.open(folder).tensor("layers.weight")
    assert str(error.value) == (
        f"{folder} has no tensor layers.weight; nearest names: layer.weight, layer.bias"
    )


def test_a_missing_tensor_without_near_names(folder):
    with pytest.raises(CheckpointError, match=r"has no tensor 0$"):
        Checkpoint.open(folder).tensor("0")


class TestFolder:
    def test_absent(self, tmp_path):
        with pytest.raises(CheckpointError, match="nowhere does not exist; give a folder with"):
            Checkpoint.open(tmp_path / "nowhere")

    def test_file(self, folder):
        with pytest.raises(CheckpointError, match=r"config\.json is a file; give a folder"):
            Checkpoint.open(folder / "config.json")

    def test_without_config(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"has no config\.json; give a Hugging Face"):
            Checkpoint.open(tmp_path)

    @pytest.mark.parametrize("text", ["{", "\xff", "[" * 100_000])
    def test_config_that_is_no_json(self, folder, text):
        (folder / "config.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(CheckpointError, match=r"config\.json is no valid JSON: .*copy it"):
            Checkpoint.open(folder)

    def test_config_that_is_no_object(self, folder):
        (folder / "config.json").write_text("[1]")
        with pytest.raises(CheckpointError, match="holds a JSON list, not an object"):
            Checkpoint.open(folder)

    def test_without_weights(self, folder):
        (folder / "model.safetensors").unlink()
        with pytest.raises(CheckpointError) as error:
            Checkpoint.open(folder)
        assert str(error.value) == (
            f"{folder} has no weights: neither model.safetensors nor model.safetensors.index.json"
        )

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
    def test_pickle_only(self, folder, name):
        (folder / "model.safetensors").rename(folder / name)
        with pytest.raises(CheckpointError) as error:
            Checkpoint.open(folder)
        assert str(error.value).startswith(
            f"{folder} has its weights only as pickle ({name}), which can run code when loaded "
            "and is never opened here; convert it where you trust it:"
        )

    @pytest.mark.parametrize("config", [{"auto_map": {}}, {"text_config": {"auto_map": {}}}])
    def test_code_of_its_own(self, folder, config):
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UnsupportedModelError, match=r"has auto_map: .* is never run; use a"):
            Checkpoint.open(folder)

    def test_quantised_by_what_is_not_known(self, folder):
        config = {"quantization_config": {"quant_method": "bitsandbytes"}}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UnsupportedModelError, match=r"quant_method is bitsandbytes; .* awq"):
            Checkpoint.open(folder)


class TestShards:
    @pytest.mark.parametrize("weight_map", [None, [], {"x": 3}])
    def test_map_of_another_form(self, folder, weight_map):
        shard(folder, weight_map)
        with pytest.raises(CheckpointError, match="weight_map must map tensor names to file"):
            Checkpoint.open(folder)

    def test_missing(self, folder):
        shard(folder, {"layer.bias": "shard-2.safetensors"})
        with pytest.raises(CheckpointError, match=r"names shard shard-2\.safetensors, which is"):
            Checkpoint.open(folder)

    def test_without_the_tensor(self, folder):
        shard(folder, {"other": "shard-1.safetensors"})
        with pytest.raises(CheckpointError, match=r"tensor other is in shard-1\.safetensors, wh"):
            Checkpoint.open(folder)

    @pytest.mark.parametrize(
        "file",
        [
            "../x.safetensors",
            "/etc/x.safetensors",
            "a/../../x",
            "..\\x",
            "C:x",
            "",
        ],
    )
    def test_outside_the_folder(self, folder, file):
        shard(folder, {"layer.bias": file})
        with pytest.raises(CheckpointError) as error:
            Checkpoint.open(folder)
        assert f"names a file outside its folder: {file!r}; shards must be" in str(error.value)


class TestHeader:
    """Files that lie about themselves."""

    def check(self, folder, content, expected):
        file = folder / "model.safetensors"
        file.write_bytes(content)
        with pytest.raises(CheckpointError) as error:
            Checkpoint.open(folder)
        assert expected in str(error.value)
        assert str(file) in str(error.value)
        assert "\n" not in str(error.value)

    def test_truncated_anywhere(self, folder):
        whole = (folder / "model.safetensors").read_bytes()
        for length in range(len(whole)):
            (folder / "model.safetensors").write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match=r"truncated.*download it again"):
                Checkpoint.open(folder)

    def test_truncated_data(self, folder):
        whole = (folder / "model.safetensors").read_bytes()
        expected = f"is truncated: its tensors end at byte {len(whole)}, the file has "
        self.check(folder, whole[:-1], expected + f"{len(whole) - 1}; download it again")

    def test_bytes_after_the_end(self, folder):
        whole = (folder / "model.safetensors").read_bytes()
        self.check(folder, whole + b"abc", "has 3 bytes after its last tensor")

    def test_huge_header_length(self, folder):
        self.check(folder, b"\xff" * 16, "is truncated or no safetensors file: its header should")

    @pytest.mark.parametrize("header", [b"{", b"\xff\xff", b'{"a": 1, "a": 2}', b"[" * 50_000])
    def test_header_that_is_no_json(self, folder, header):
        self.check(folder, raw_safetensors(header), "the safetensors header is damaged (")

    def test_header_that_is_no_object(self, folder):
        self.check(folder, raw_safetensors(b"[]"), "the safetensors header is no JSON object")

    @pytest.mark.parametrize(
        ("lie", "expected"),
        [
            (3, "tensor x has no dtype, shape and data_offsets"),
            (entry((0, 8), dtype="F4"), "tensor x has dtype 'F4'; supported are F64, F32"),
            (entry((0, 8), dtype=7), "tensor x has dtype 7; supported are"),
            (entry((0, 8), shape=(-2,)), "tensor x has shape [-2]; it must be a list of sizes"),
            (entry((0, 8), shape=(True,)), "tensor x has shape [True]; it must be"),
            (entry((0,)), "tensor x has data_offsets [0]; two sizes are needed"),
            (entry((0, 4)), "tensor x, F32 [2], needs 8 bytes, but its data_offsets give it 4"),
            (entry((8, 0)), "tensor x, F32 [2], needs 8 bytes, but its data_offsets give it -8"),
            (entry((4, 12)), "tensor x leaves a gap before it"),
            (entry((0, 2**52), shape=(2**50,)), "is truncated: its tensors end at byte"),
        ],
    )
    def test_entry(self, folder, lie, expected):
        self.check(folder, raw_safetensors({"x": lie}, bytes(8)), expected)

    def test_overlap(self, folder):
        header = {"x": entry((0, 8)), "y": entry((4, 12))}
        self.check(folder, raw_safetensors(header, bytes(12)), "tensor y overlaps another tensor")


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_json_object(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read: "):
        read_tensors(tmp_path / "absent.safetensors")
