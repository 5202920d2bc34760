"""Small parts of a build: memory, timing caches, and the command that does the same by hand."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.engines import job_for, profile_of

from feather_edge.engines import _device
from feather_edge.engines.commands import polygraphy_command
from feather_edge.engines.jobs import Device, Environment
from feather_edge.engines.memory import pool_bytes
from feather_edge.engines.model_bytes import model_bytes
from feather_edge.engines.timing_cache import timing_cache_file
from feather_edge.errors import BuildError
from feather_edge.recipes import EngineRecipe

if TYPE_CHECKING:
    from support.bundles import BundleFactory
    from support.fake_cuda import FakeGpu

ORIN = Device(name="Orin (nvgpu)", compute_capability="8.7", cuda_version="12.6")
HERE = Environment(tensorrt_version="10.3.0", device=ORIN)


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [
        ((), {}),
        (("workspace:2G",), {"workspace": 2 << 30}),
        (("workspace:512M", "tactic_dram:3K"), {"workspace": 512 << 20, "tactic_dram": 3 << 10}),
        (("workspace:77",), {"workspace": 77}),
    ],
)
def test_pools(limits: tuple[str, ...], sizes: dict[str, int]) -> None:
    assert pool_bytes(EngineRecipe(pool_limit=limits).pool_limit) == sizes


def test_a_timing_cache_is_of_one_device_version_and_precision(tmp_path: Path) -> None:
    recipe = EngineRecipe(timing_cache=str(tmp_path))
    file = timing_cache_file(recipe, HERE, precision="fp16")
    assert file == tmp_path / "orin-nvgpu-sm87-tensorrt-10.3.0-fp16.cache"
    newer = Environment(tensorrt_version="10.4.0", device=ORIN)
    others = {
        timing_cache_file(recipe, newer, precision="fp16"),
        timing_cache_file(recipe, HERE, precision="fp32"),
    }
    assert len({file, *others}) == 3


def test_a_timing_cache_may_be_one_file(tmp_path: Path) -> None:
    recipe = EngineRecipe(timing_cache=str(tmp_path / "mine.cache"))
    assert timing_cache_file(recipe, HERE, precision="fp16") == tmp_path / "mine.cache"


def test_a_timing_cache_is_the_users_by_default_and_none_for_rtx() -> None:
    file = timing_cache_file(EngineRecipe(), HERE, precision="fp16")
    assert file is not None
    assert file.parent.parts[-2:] == ("feather-edge", "timing")
    assert timing_cache_file(EngineRecipe(backend="tensorrt-rtx"), HERE, precision="fp16") is None


def test_the_command_does_what_the_job_does() -> None:
    job = job_for(
        Path("/b/g.onnx"),
        profile_of(x=((1, 4), (2, 4), (3, 4)), num_kept=((1,), (2,), (3,))),
        pool_limits={"workspace": 7}, timing_cache="/t.cache", plugin="/p.so",
    )  # fmt: skip
    text = polygraphy_command(job, output="/b/g.engine")
    assert text.startswith("POLYGRAPHY_USE_TENSORRT_RTX=1 polygraphy convert /b/g.onnx ")
    words = shlex.split(text)
    for pair in (
        ["--trt-min-shapes", "x:[1,4]"], ["--pool-limit", "workspace:7"], ["--plugins", "/p.so"],
        ["--compute-capabilities", "8.6"], ["--save-timing-cache", "/t.cache"],
        ["-o", "/b/g.engine"],
    ):  # fmt: skip
        assert words[words.index(pair[0]) + 1] == pair[1]


def test_the_gpu_is_asked_of_the_driver(gpu: FakeGpu) -> None:
    assert _device.current_device() == Device(
        name="Orin", compute_capability="8.7", cuda_version="12.6"
    )


def test_a_model_is_changed_on_its_way_and_not_on_disk(bundles: BundleFactory) -> None:
    import onnx

    spec = bundles(num_layers=4).bundle.decoders[0]
    (form,) = (form for form in spec.forms if form.opset == 24)
    file = bundles(num_layers=4).bundle.path / form.file
    before = file.read_bytes()
    plain = onnx.load_from_string(model_bytes(job_for(file)))
    assert plain == onnx.load(file, load_external_data=False)
    stripped = onnx.load_from_string(model_bytes(job_for(file, strip_functions=True)))
    assert plain.functions
    assert not stripped.functions
    assert stripped.graph == plain.graph
    fixed = onnx.load_from_string(model_bytes(job_for(file, fixed_dims={"cache_capacity": 99})))
    sizes = {
        dim.dim_value or dim.dim_param
        for value in (*fixed.graph.input, *fixed.graph.output)
        if value.name.startswith(("past_key_values.", "present."))
        for dim in value.type.tensor_type.shape.dim[2:3]
    }
    assert sizes == {99}
    assert fixed.functions == plain.functions
    assert file.read_bytes() == before


@pytest.mark.parametrize("place", ["../decoder_0.onnx_data", "/etc/hostname", "link"])
def test_weights_outside_the_folder_of_a_model_are_refused(
    bundles: BundleFactory, tmp_path: Path, place: str
) -> None:
    import onnx

    bundle = bundles(num_layers=4).bundle
    model = onnx.load(bundle.path / bundle.decoders[0].file, load_external_data=False)
    (tmp_path / "link").symlink_to("/etc/hostname")
    weight = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    for entry in weight.external_data:
        if entry.key == "location":
            entry.value = place
    file = tmp_path / "decoder_0.onnx"
    file.write_bytes(model.SerializeToString())
    with pytest.raises(BuildError, match=f"takes tensor '{weight.name}' from '{place}', which is"):
        model_bytes(job_for(file))
