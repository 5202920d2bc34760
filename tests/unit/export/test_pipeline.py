"""Export: what is refused, and what a failure leaves behind."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.edits import edited_checkpoint

from feather_edge.bundle import Bundle
from feather_edge.checkpoint.reader import read_tensors
from feather_edge.errors import (
    BundleError,
    CheckpointError,
    RecipeError,
    UnsupportedModelError,
)
from feather_edge.export.pipeline import export
from feather_edge.recipes import ExportRecipe, load_recipe
from feather_edge.runtime.embeddings import Embeddings

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory

Q_PROJ = "language_model.model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def checkpoint(bundles: BundleFactory) -> Path:
    return bundles.checkpoint(num_layers=4)


def fails(checkpoint: Path, tmp_path: Path, kind: type[Exception], message: str) -> None:
    """The export fails as told and leaves the output's folder as it was."""
    output = tmp_path / "out" / "bundle"
    output.parent.mkdir()

    with pytest.raises(kind, match=message) as caught:
        export(checkpoint, output, ExportRecipe())

    assert "\n" not in str(caught.value)
    assert list(output.parent.iterdir()) == []


def q_proj_name(tensors: dict[str, Any]) -> str:
    (name,) = (
        n for n in tensors if n.endswith("layers.1.self_attn.q_proj.weight") and "lang" in n
    )
    return name


def test_bundle_is_whole(checkpoint: Path, tmp_path: Path) -> None:
    seen = []
    bundle = export(
        checkpoint,
        tmp_path / "bundle",
        ExportRecipe(),
        on_progress=lambda label, done, total: seen.append((label, done, total)),
    )

    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert manifest == bundle.manifest
    assert manifest.recipe.stages == (1, 2)  # a quarter and a half of 4
    assert manifest.model_type == "llava"
    assert manifest.source == checkpoint.name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]
    listed = {*manifest.files, "manifest.json"}
    files = {p.relative_to(bundle.path).as_posix() for p in bundle.path.rglob("*") if p.is_file()}
    assert listed == files
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= files
    assert {label for label, _, _ in seen} == {g.name for g in manifest.graphs}
    for name in {label for label, _, _ in seen}:
        done = [d for label, d, _ in seen if label == name]
        (total,) = {t for label, _, t in seen if label == name}
        assert done == sorted(done)
        assert 0 < done[-1] <= total


def test_recipe_without_pruning_is_one_segment(checkpoint: Path, tmp_path: Path) -> None:
    bundle = export(checkpoint, tmp_path / "bundle", ExportRecipe(prune="none"))

    assert bundle.manifest.recipe.stages == ()
    assert [g.name for g in bundle.manifest.graphs] == ["vision_encoder", "decoder_0"]


def test_three_ratios_have_three_stages(checkpoint: Path, tmp_path: Path) -> None:
    bundle = export(checkpoint, tmp_path / "bundle", load_recipe("pyramiddrop"))
    assert bundle.manifest.recipe.stages == (1, 2, 3)


def test_recipe_without_pruning_may_still_name_stages(checkpoint: Path, tmp_path: Path) -> None:
    bundle = export(checkpoint, tmp_path / "bundle", ExportRecipe(prune="none", stages=(2,)))

    assert len(bundle.decoders) == 2


def test_embeddings_are_those_of_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    bundle = export(checkpoint, tmp_path / "bundle", ExportRecipe(precision="fp16"))
    (view,) = read_tensors(bundle.embed_tokens_file).values()
    tensors = read_tensors(checkpoint / "model.safetensors")
    (source,) = (v for name, v in tensors.items() if name.endswith("embed_tokens.weight"))

    assert view.dtype == np.float16
    np.testing.assert_array_equal(view.read(), source.read().astype(np.float16))


def test_embeddings_have_a_precision_of_their_own(bundles: BundleFactory, tmp_path: Path) -> None:
    untied = bundles.checkpoint(tie_word_embeddings=False)
    plain, rounded = (
        export(untied, tmp_path / str(kind), ExportRecipe(embedding_precision=kind, opset="23"))
        for kind in (None, "int8")
    )
    exact, lossy = (Embeddings.open(bundle)[np.arange(16)] for bundle in (plain, rounded))
    steps = np.abs(exact).max(axis=1, keepdims=True) / 127
    assert (np.abs(lossy - exact) <= steps * 0.501).all()
    assert not np.array_equal(lossy, exact)
    np.testing.assert_array_equal(Embeddings.open(rounded)[3], lossy[3])
    sizes = [bundle.embed_tokens_file.stat().st_size for bundle in (plain, rounded)]
    assert sizes[1] < 0.3 * sizes[0]


def test_a_tied_float_head_keeps_the_embeddings_in_its_type(
    bundles: BundleFactory, tmp_path: Path
) -> None:
    folder = bundles(tie_word_embeddings=True).checkpoint
    with pytest.raises(RecipeError) as caught:
        export(folder, tmp_path / "bundle", ExportRecipe(embedding_precision="fp16"))
    assert str(caught.value) == (
        "embedding_precision is fp16, but the language head of this checkpoint is the same matrix "
        "and stays float32; choose head_precision int8 too, or leave embedding_precision out"
    )
    assert not (tmp_path / "bundle").exists()
    wanted = ExportRecipe(embedding_precision="int8", head_precision="int8", opset="23")
    assert export(folder, tmp_path / "bundle", wanted).manifest.recipe.head_precision == "int8"


# -- checkpoints that are refused -------------------------------------------------------------


def test_no_folder(tmp_path: Path) -> None:
    fails(tmp_path / "nothing", tmp_path, CheckpointError, "nothing does not exist")


def test_unsupported_family_lists_what_is_supported(checkpoint: Path, tmp_path: Path) -> None:
    folder = edited_checkpoint(
        checkpoint, tmp_path / "c", config=lambda c: c.update(model_type="blip")
    )
    message = "model_type 'blip' of .* is not supported; supported are .*llava"

    fails(folder, tmp_path, UnsupportedModelError, message)


def test_missing_tensor(checkpoint: Path, tmp_path: Path) -> None:
    folder = edited_checkpoint(checkpoint, tmp_path / "c", tensors=lambda t: t.pop(q_proj_name(t)))

    fails(folder, tmp_path, CheckpointError, "has no tensor .*layers.1.self_attn.q_proj.weight")


def test_tensor_of_another_shape(checkpoint: Path, tmp_path: Path) -> None:
    def cut(tensors: dict[str, np.ndarray]) -> None:
        name = q_proj_name(tensors)
        tensors[name] = np.ascontiguousarray(tensors[name][:, :-1])

    folder = edited_checkpoint(checkpoint, tmp_path / "c", tensors=cut)
    message = r"q_proj.weight' has shape \[64, 63\], but config.json asks for \[64, 64\]"

    fails(folder, tmp_path, CheckpointError, message)


@pytest.mark.parametrize(
    ("part", "cut"),
    [
        ("self_attn.q_proj", 16),
        ("self_attn.k_proj", 16),
        ("self_attn.v_proj", 16),
        ("mlp.gate_proj", 8),
        ("mlp.up_proj", 8),
    ],
)
def test_projection_with_too_few_rows(
    checkpoint: Path, tmp_path: Path, part: str, cut: int
) -> None:
    def shorten(tensors: dict[str, np.ndarray]) -> None:
        (name,) = (n for n in tensors if "lang" in n and f"layers.1.{part}.weight" in n)
        tensors[name] = np.ascontiguousarray(tensors[name][:-cut])

    folder = edited_checkpoint(checkpoint, tmp_path / "c", tensors=shorten)

    fails(folder, tmp_path, CheckpointError, f"{part}.weight.* has shape")


def test_embeddings_of_another_vocabulary(checkpoint: Path, tmp_path: Path) -> None:
    def shorten(tensors: dict[str, np.ndarray]) -> None:
        (name,) = (n for n in tensors if n.endswith("embed_tokens.weight"))
        tensors[name] = np.ascontiguousarray(tensors[name][:-5])

    folder = edited_checkpoint(checkpoint, tmp_path / "c", tensors=shorten)

    fails(folder, tmp_path, CheckpointError, "embed_tokens.weight' has shape")


@pytest.mark.parametrize(
    "extra",
    [
        "layers.1.self_attn.q_norm.weight",
        "layers.0.self_attn.q_proj.bias",
        "layers.9.self_attn.q_proj.weight",
    ],
)
def test_tensor_that_no_graph_takes(checkpoint: Path, tmp_path: Path, extra: str) -> None:
    """A checkpoint with more than its config says is another model: refused, not cut down."""

    def add(tensors: dict[str, np.ndarray]) -> None:
        prefix = q_proj_name(tensors).partition("layers.")[0]
        tensors[prefix + extra] = np.zeros(16, np.float32)

    folder = edited_checkpoint(checkpoint, tmp_path / "c", tensors=add)

    fails(folder, tmp_path, CheckpointError, f"{extra}' has no place in the exported graphs")


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            {"vision_feature_select_strategy": "some"},
            CheckpointError,
            "vision_feature_select_strategy is 'some'; it must be default or full",
        ),
        (
            {"vision_feature_select_strategy": "full"},
            UnsupportedModelError,
            "'full' with a clip_vision_model does not give a raster of visual tokens",
        ),
        (
            {"vision_feature_layer": 9},
            CheckpointError,
            "vision_feature_layer is 9; it must index the 4 hidden states",
        ),
        ({"vision_feature_layer": [1, -5]}, CheckpointError, r"vision_feature_layer is \[1, -5\]"),
        (
            {"projector_hidden_act": "mish"},
            UnsupportedModelError,
            "activation 'mish' is not supported; supported are gelu",
        ),
    ],
)
def test_config_that_is_refused(
    checkpoint: Path, tmp_path: Path, change: dict[str, Any], kind: type[Exception], message: str
) -> None:
    folder = edited_checkpoint(checkpoint, tmp_path / "c", config=lambda c: c.update(change))

    fails(folder, tmp_path, kind, message)


def test_preprocessing_of_another_model(checkpoint: Path, tmp_path: Path) -> None:
    folder = edited_checkpoint(checkpoint, tmp_path / "c")
    for name in ("processor_config.json", "preprocessor_config.json"):
        config = json.loads((folder / name).read_text())
        config.get("image_processor", config)["crop_size"] = {"height": 56, "width": 56}
        (folder / name).write_text(json.dumps(config))

    fails(folder, tmp_path, CheckpointError, "preprocessor config belongs to another model")


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((4,), "layer 4 is out of range; a decoder of 4 layers"),
        ((1, 9), "layer 9 is out of range"),
    ],
)
def test_stages_beyond_the_decoder(
    checkpoint: Path, tmp_path: Path, stages: tuple[int, ...], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        export(checkpoint, tmp_path / "bundle", ExportRecipe(stages=stages))
    assert list(tmp_path.iterdir()) == []


# -- the output folder ------------------------------------------------------------------------


def test_existing_output_needs_force(checkpoint: Path, tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "bundle", ExportRecipe())

    with pytest.raises(BundleError, match="already exists; overwrite it with --force"):
        export(checkpoint, tmp_path / "bundle", ExportRecipe())
    bundle = export(checkpoint, tmp_path / "bundle", ExportRecipe(stages=(3,)), force=True)

    assert bundle.manifest.recipe.stages == (3,)
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_old_bundle_survives_a_failing_export(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    before = export(checkpoint, out / "bundle", ExportRecipe()).manifest
    broken = edited_checkpoint(checkpoint, tmp_path / "c", tensors=lambda t: t.pop(q_proj_name(t)))

    with pytest.raises(CheckpointError):
        export(broken, out / "bundle", ExportRecipe(), force=True)

    assert Bundle.open(out / "bundle").manifest == before
    assert [p.name for p in out.iterdir()] == ["bundle"]


def test_interrupted_export_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    def interrupt(label: str, num_done: int, num_total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(checkpoint, tmp_path / "bundle", ExportRecipe(), on_progress=interrupt)

    assert list(tmp_path.iterdir()) == []
