"""Recipes: where they are found, what they may say, and how options override them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feather_edge.errors import RecipeError
from feather_edge.recipes import (
    CriterionName,
    ExportRecipe,
    default_recipe_name,
    describe_recipe,
    load_engine_recipe,
    load_recipe,
    override,
    override_engine,
    reading,
    recipe_folder,
    recipe_names,
)
from feather_edge.recipes.precision import effective_precision

if TYPE_CHECKING:
    from pathlib import Path


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(text: str, action: Any) -> None:
    with pytest.raises(RecipeError, match=re.escape(text)):
        action()


def test_shipped_recipes() -> None:
    assert recipe_names() == ("fastv", "feather", "pyramiddrop", "scene-vlm", "unpruned")


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_is_valid(name: str) -> None:
    assert isinstance(load_recipe(name), ExportRecipe)


def test_feather_is_the_paper() -> None:
    assert load_recipe("feather") == ExportRecipe(
        stages=None, prune="feather", keep_ratio=(0.3,), stride=3, selection="fill",
        precision="fp32", seed=0,
    )  # fmt: skip


def test_unpruned_leaves_the_decoder_whole() -> None:
    recipe = load_recipe("unpruned")
    assert (recipe.stages, recipe.prune) == ((), "none")


def test_the_shipped_model_has_its_own_recipe() -> None:
    assert default_recipe_name("demo") == "scene-vlm"
    assert default_recipe_name("llava-hf/llava-1.5-7b-hf") == "feather"


def test_an_installed_package_carries_its_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = tmp_path / "feather_edge" / "_recipes" / "export"
    packaged.mkdir(parents=True)
    (packaged / "only.toml").write_text("seed = 7")
    monkeypatch.setattr(reading, "__file__", str(tmp_path / "feather_edge/recipes/reading.py"))
    assert recipe_folder() == packaged
    assert recipe_names() == ("only",)
    assert load_recipe("only").seed == 7


def test_a_checkout_has_them_beside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "__file__", str(tmp_path / "feather_edge/recipes/reading.py"))
    assert recipe_folder("engines") == tmp_path / "engines" / "recipes"
    assert recipe_names("engines") == ()


def test_a_file_is_read_as_written(tmp_path: Path) -> None:
    path = written(tmp_path, 'stages = [2, 5]\nkeep_ratio = [0.5, 0.25]\nprecision = "fp16"\n')
    assert load_recipe(path) == ExportRecipe(
        stages=(2, 5), keep_ratio=(0.5, 0.25), precision="fp16"
    )


def test_a_whole_number_is_a_ratio_too(tmp_path: Path) -> None:
    assert load_recipe(written(tmp_path, "keep_ratio = [1]")).keep_ratio == (1.0,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keep_ration = [0.1]", "key 'keep_ration' is unknown (did you mean 'keep_ratio'?)"),
        ("keep-ratio = [0.1]", "key 'keep-ratio' is unknown (did you mean 'keep_ratio'?)"),
        ("zzz = 1", "key 'zzz' is unknown; allowed are stages"),
        ("stride = '3'", "stride: expected int, got str"),
        ("stride = 2.5", "stride: expected int, got float"),
        ("seed = true", "seed: expected int, got bool"),
        ("stages = 4", "stages: expected array, got int"),
        ("stages = ['4']", "stages[0]: expected int, got str"),
        ("keep_ratio = 0.3", "keep_ratio: expected array, got float"),
        ("prune = 'best'", "prune is 'best'; choose feather, fastv, fastv-full, pyramiddrop"),
        ("precision = 'int3'", "precision is 'int3'; choose fp32, fp16"),
        ("keep_ratio = [2.0]", "keep_ratio 2.0 is out of range; it must be in (0, 1]"),
        ("stages = [", "is no valid TOML: "),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"recipe {path}")
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"prune = '\xff'")
    refused(f"recipe {path} cannot be read: ", lambda: load_recipe(path))


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    refused(
        "recipe 'fether' is unknown (did you mean 'feather'?); choose fastv, feather, "
        "pyramiddrop, scene-vlm, unpruned, or give the path of a .toml file",
        lambda: load_recipe("fether"),
    )


def test_a_missing_file_is_refused() -> None:
    refused("recipe no/such.toml is not a file", lambda: load_recipe("no/such.toml"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stages": (0, 4)}, "so 0 is too early; the first possible is 1"),
        ({"stages": (8, 4)}, "stages [8, 4] must be ascending and without repeats"),
        ({"stages": (4, 4)}, "stages [4, 4] must be ascending and without repeats"),
        ({"keep_ratio": ()}, "keep_ratio is empty; give one value, or one for each stage"),
        ({"keep_ratio": (0.0,)}, "keep_ratio 0.0 is out of range; it must be in (0, 1]"),
        ({"keep_ratio": (float("nan"),)}, "keep_ratio nan is out of range"),
        ({"keep_ratio": (0.2, 0.5)}, "keep_ratio [0.2, 0.5] grows; each value is a share of all"),
        ({"stages": (4,), "keep_ratio": (0.5, 0.2)}, "keep_ratio has 2 values for 1 stages"),
        ({"stride": -1}, "stride is -1; it must be 0 or more"),
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
        ({"prune": "best"}, "prune is 'best'; choose feather"),
        ({"selection": "some"}, "selection is 'some'; choose fill, union"),
        ({"opset": "19"}, "opset is '19'; choose 18, 23, 24, both, all"),
        ({"precision": "fp8"}, "precision is 'fp8'; choose fp32, fp16, bf16, int8, int4"),
        ({"vision_precision": "fp8"}, "vision_precision is 'fp8'; choose fp32, fp16"),
        ({"head_precision": "fp16"}, "head_precision is 'fp16'; choose float, int8, int4"),
        ({"embedding_precision": "int4"}, "embedding_precision is 'int4'; choose float, fp16"),
        ({"activations": "int8"}, "activations is 'int8'; choose fp32, fp16, bf16"),
        ({"clipping": "some"}, "clipping is 'some'; choose none, mse"),
        ({"block_size": 48}, "block_size is 48; it must be a power of two from 16 on"),
        ({"block_size": 8}, "block_size is 8; it must be a power of two from 16 on"),
        ({"activations": "fp16"}, "activations is fp16, but precision fp32 says it already"),
        (
            {"precision": "int8-dynamic", "activations": "fp16"},
            "precision is int8-dynamic, which quantises fp32 activations alone, and they are fp16",
        ),
        (
            {"precision": "fp16", "head_precision": "int8-dynamic", "opset": "23"},
            "head_precision is int8-dynamic, which quantises fp32 activations alone",
        ),
        (
            {"precision": "int4", "opset": "all"},
            "opset all cannot hold precision int4, since 18 holds fp32, fp16 alone; leave",
        ),
        (
            {"precision": "fp16", "vision_precision": "int8", "opset": "18"},
            "opset 18 cannot hold vision_precision int8",
        ),
        ({"head_precision": "int8", "opset": "all"}, "opset all cannot hold head_precision int8"),
        (
            {"precision": "int8-dynamic", "opset": "24"},
            "opset 24 is for TensorRT, which has no int8-dynamic; take 23",
        ),
        ({"precision": "bf16", "opset": "18"}, "opset 18 cannot hold precision bf16"),
    ],
)  # fmt: skip
def test_a_value_that_is_not_allowed_is_refused(values: dict[str, Any], message: str) -> None:
    refused(message, lambda: ExportRecipe(**values))


@pytest.mark.parametrize(
    ("values", "effective"),
    [
        ({}, {"vision_precision": "fp32", "head_precision": "float"}),
        (
            {"precision": "int4"},
            {"vision_precision": "int8", "head_precision": "int8",
             "activations": "fp32"},
        ),
        (
            {"precision": "int8", "vision_precision": "fp16", "head_precision": "int4",
             "activations": "fp16"},
            {"vision_precision": "fp16", "head_precision": "int4",
             "activations": "fp16"},
        ),
        (
            {"precision": "bf16"},
            {"vision_precision": "bf16", "head_precision": "float"},
        ),
    ],
)  # fmt: skip
def test_what_is_left_out_is_settled(values: dict[str, Any], effective: dict[str, Any]) -> None:
    recipe = ExportRecipe(**values)
    assert effective_precision(recipe) == effective
    settled = msgspec.structs.replace(recipe, **effective)
    assert effective_precision(settled) == effective


def test_override_takes_what_is_given_and_keeps_the_rest() -> None:
    recipe = ExportRecipe(stages=(4, 6), keep_ratio=(0.5, 0.25), seed=3)
    changed = override(recipe, keep_ratio=(0.4, 0.1), precision="fp16")
    assert changed == ExportRecipe(stages=(4, 6), keep_ratio=(0.4, 0.1), seed=3, precision="fp16")
    assert override(recipe) == recipe


def test_override_tells_empty_and_zero_from_not_given() -> None:
    changed = override(ExportRecipe(stages=(4,), seed=3, stride=3), stages=(), seed=0, stride=0)
    assert (changed.stages, changed.seed, changed.stride) == ((), 0, 0)


def test_override_checks_the_outcome() -> None:
    recipe = ExportRecipe(stages=(4, 6), keep_ratio=(0.5, 0.25))
    refused("keep_ratio has 2 values for 1 stages", lambda: override(recipe, stages=(4,)))


RATIO = st.floats(0.001, 1)


@given(
    stages=st.none() | st.lists(st.integers(1, 80), unique=True, max_size=4).map(sorted),
    prune=st.sampled_from(get_args(CriterionName)),
    keep_ratio=RATIO,
    stride=st.integers(0, 9),
    selection=st.sampled_from(["fill", "union"]),
    precision=st.sampled_from(["fp32", "fp16"]),
    opset=st.sampled_from(["18", "23", "24", "all", None]),
    seed=st.integers(0, 2**31),
)
def test_a_description_is_a_recipe_again(
    tmp_path_factory: pytest.TempPathFactory, **values: Any
) -> None:
    stages = values["stages"]
    values["stages"] = None if stages is None else tuple(stages)
    # Feather takes one ratio for two stages at most, and one for each of any number.
    values["keep_ratio"] = (values["keep_ratio"],) * max(1, len(stages or ()))
    recipe = ExportRecipe(**values)
    path = written(tmp_path_factory.getbasetemp(), describe_recipe(recipe))
    assert load_recipe(path) == recipe


def test_feather_with_one_ratio_has_two_stages_at_most() -> None:
    with pytest.raises(RecipeError, match="one value for 3 stages; feather with one"):
        ExportRecipe(stages=(1, 2, 3))
    assert ExportRecipe(stages=(1, 2, 3), prune="fastv").stages == (1, 2, 3)


TARGETS = (
    "agx-orin-32gb", "agx-orin-64gb", "agx-thor", "desktop", "dgx-spark", "orin-nano-8gb",
    "orin-nx-16gb", "rtx",
)  # fmt: skip


def test_shipped_targets() -> None:
    assert recipe_names("engines") == TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_a_shipped_target_is_valid_and_within_what_tensorrt_can_keep(name: str) -> None:
    recipe = load_engine_recipe(name)
    assert recipe.description
    assert recipe.max_prompt_tokens + recipe.max_visual_tokens <= 3840
    assert (recipe.shared_memory_mib is None) == (name in {"desktop", "rtx"})


@pytest.mark.parametrize(
    ("name", "capabilities"),
    [
        ("orin-nano-8gb", ("8.7",)), ("agx-orin-64gb", ("8.7",)), ("agx-thor", ("11.0",)),
        ("dgx-spark", ("12.1",)), ("rtx", ("7.5", "8.0", "8.6", "8.9", "12.0")), ("desktop", ()),
    ],
)  # fmt: skip
def test_gpus_of_a_target(name: str, capabilities: tuple[str, ...]) -> None:
    assert load_engine_recipe(name).compute_capabilities == capabilities


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('backend = "cuda"', "backend is 'cuda'; choose tensorrt, tensorrt-rtx"),
        ("max_prompt_token = 3", "did you mean 'max_prompt_tokens'?"),
        ("max_batch_size = 0", "max_batch_size is 0; it must be 1 or more"),
        ("max_cache_capacity = 1536", "leaves no room for an answer"),
        ("opt_prompt_tokens = 600", "it must not be more than max_prompt_tokens, 512"),
        ('compute_capabilities = ["87"]', "holds '87', which is not of the form such as 8.7"),
        ('pool_limit = ["workspace:2T"]', "not of the form such as workspace:2G"),
        ('pool_limit = ["dla:2G"]', "not of the form such as workspace:2G"),
        ('tensorrt_version = "ten"', "not of the form such as 10.3"),
        ("builder_optimization_level = 6", "it must be 0 to 5"),
        ("max_keep_ratio = [0.5, 0.6]", "max_keep_ratio [0.5, 0.6] grows"),
        ('profiles = "three"', "profiles is 'three'; choose two, one"),
    ],
)
def test_a_target_that_is_not_valid(tmp_path: Path, text: str, message: str) -> None:
    refused(message, lambda: load_engine_recipe(written(tmp_path, text)))


def test_a_flag_beats_the_target() -> None:
    recipe = override_engine(load_engine_recipe("rtx"), opset="18", max_batch_size=None)
    assert (recipe.opset, recipe.max_batch_size) == ("18", 1)
    refused("opset is '19'; choose auto, 18, 23", lambda: override_engine(recipe, opset="19"))


def test_a_target_is_shown_as_toml(tmp_path: Path) -> None:
    recipe = load_engine_recipe("orin-nano-8gb")
    text = describe_recipe(recipe)
    assert "# timing_cache: in the user's cache folder" in text
    assert load_engine_recipe(written(tmp_path, text)) == recipe
