"""A session over a fake backend: everything but the values."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.sealing import edit_manifest, seal_files
from tokenizers import Tokenizer

from feather_edge import FakeBackend, Region, Session
from feather_edge.errors import BackendError, BundleError, RequestError
from feather_edge.pruning import PRE_CRITERION_NAMES, Pruning
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime.sampling import Sampling
from feather_edge.runtime.session import default_pruning

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from support.bundles import BundleFactory

    from feather_edge.bundle import Bundle
    from feather_edge.graphs import GraphSpec
    from feather_edge.runtime.backends import Graph

SIDE = 8
NUM_VISUAL_TOKENS = SIDE * SIDE
STAGES = (1, 3)
PICTURE = np.zeros((20, 30, 3), np.uint8)
PROMPT = "where is the red circle ?"
NONE = Pruning(criterion="none")


@pytest.fixture(scope="module")
def bundle(bundles: BundleFactory) -> Bundle:
    return bundles(num_layers=4, image_size=56, recipe=ExportRecipe(stages=STAGES)).bundle


@pytest.fixture(scope="module")
def tokenizer(bundle: Bundle) -> Tokenizer:
    return Tokenizer.from_file(str(bundle.path / "tokenizer.json"))


@pytest.fixture(scope="module")
def end(bundle: Bundle) -> int:
    (token_id,) = bundle.manifest.eos_token_ids
    return token_id


def answering(bundle: Bundle, *token_ids: int) -> Session:
    return Session.open(bundle, backend=FakeBackend(token_ids=token_ids))


# -- answers ----------------------------------------------------------------------------------


def test_stream_joins_to_the_answer(bundle: Bundle, tokenizer: Tokenizer, end: int) -> None:
    spoken = tokenizer.encode("The blue star is left", add_special_tokens=False).ids
    with answering(bundle, *spoken, end) as session:
        tokens = list(session.stream(PICTURE, PROMPT))
        result = session.last_result

    assert [t.token_id for t in tokens] == spoken
    assert "".join(t.text for t in tokens) == result.text == "The blue star is left"
    assert result.token_ids == tuple(spoken)
    assert result.finish_reason == "stop"


def test_generate_is_the_stream_to_its_end(bundle: Bundle, end: int) -> None:
    with answering(bundle, 300, 301, end) as session:
        result = session.generate(PICTURE, PROMPT)

        assert result is session.last_result
    assert result.token_ids == (300, 301)


def test_an_answer_may_be_empty(bundle: Bundle, end: int) -> None:
    result = answering(bundle, end).generate(PICTURE, PROMPT)

    assert (result.token_ids, result.text, result.finish_reason) == ((), "", "stop")
    assert result.ttft_ms > 0
    assert result.tpot_ms is None


def test_limit_ends_an_answer(bundle: Bundle) -> None:
    result = answering(bundle, 300).generate(PICTURE, PROMPT, max_new_tokens=3)

    assert result.token_ids == (300, 300, 300)
    assert result.finish_reason == "length"
    assert result.tpot_ms > 0


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_character_of_several_tokens_at_the_very_end(
    bundle: Bundle, tokenizer: Tokenizer, end: int, is_cut: bool
) -> None:
    spoken = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "é".encode()]
    session = answering(bundle, *spoken, end)

    limit = len(spoken) if is_cut else None
    tokens = list(session.stream(PICTURE, PROMPT, max_new_tokens=limit))

    assert session.last_result.text == "".join(t.text for t in tokens) == "é"
    assert session.last_result.token_ids == tuple(spoken)
    assert session.last_result.finish_reason == ("length" if is_cut else "stop")


def test_default_limit_is_128(bundle: Bundle) -> None:
    result = answering(bundle, 300).generate(PICTURE, PROMPT)

    assert len(result.token_ids) == 128


def test_checkpoint_s_own_limit(bundle: Bundle, tmp_path: Path) -> None:
    folder = edited(bundle, tmp_path, lambda m: m.update(max_new_tokens=2))

    assert len(answering_at(folder, 300).generate(PICTURE, PROMPT).token_ids) == 2


def test_any_of_several_end_tokens(bundle: Bundle, tmp_path: Path) -> None:
    folder = edited(bundle, tmp_path, lambda m: m.update(eos_token_ids=[7, 300]))

    assert answering_at(folder, 301, 300).generate(PICTURE, PROMPT).token_ids == (301,)


def test_requests_do_not_see_each_other(bundle: Bundle, end: int) -> None:
    with answering(bundle, 300, end) as session:
        first, second = (session.generate(PICTURE, PROMPT) for _ in range(2))

    assert first.num_prompt_tokens == second.num_prompt_tokens
    assert first.stages[0].kept_indices.tolist() == second.stages[0].kept_indices.tolist()


def test_sampling_is_seeded(bundle: Bundle) -> None:
    hot = [Sampling(temperature=5.0, seed=seed) for seed in (1, 1, 2)]
    answers = [
        answering(bundle, 300)
        .generate(PICTURE, PROMPT, sampling=sampling, max_new_tokens=12)
        .token_ids
        for sampling in hot
    ]

    assert answers[0] == answers[1] != answers[2]


# -- images and prompts -----------------------------------------------------------------------


@pytest.mark.parametrize("num_images", [1, 2, 3])
def test_several_images(bundle: Bundle, num_images: int) -> None:
    result = answering(bundle, 300).generate([PICTURE] * num_images, PROMPT, max_new_tokens=2)

    assert result.num_visual_tokens == num_images * NUM_VISUAL_TOKENS
    for stage in result.stages:
        per_image = np.bincount(stage.kept_indices // NUM_VISUAL_TOKENS, minlength=num_images)
        assert len(set(per_image)) == 1
        assert per_image[0] >= 1


def test_text_only(bundle: Bundle) -> None:
    result = answering(bundle, 300).generate([], PROMPT, max_new_tokens=2)

    assert result.num_visual_tokens == 0
    assert result.reason == "the prompt has no image"
    assert [stage.num_kept for stage in result.stages] == [0, 0]


def test_messages(bundle: Bundle) -> None:
    content = [{"type": "text", "text": "look:"}, {"type": "image"}]
    messages = [{"role": "user", "content": content}]

    result = answering(bundle, 300).generate(PICTURE, messages, max_new_tokens=1)

    assert result.num_visual_tokens == NUM_VISUAL_TOKENS


@pytest.mark.parametrize(
    ("images", "prompt", "message"),
    [
        (PICTURE, "and <image> ?", "2 image placeholders .* for 1 images"),
        (PICTURE, [{"role": "user", "content": "hello"}], "0 image entries for 1 images"),
        (b"no picture", PROMPT, "image"),
        ("/nowhere/kitchen.jpg", PROMPT, "/nowhere/kitchen.jpg"),
        (np.zeros((4, 4), np.uint8), PROMPT, r"image"),
    ],
)
def test_requests_that_cannot_be_read(
    bundle: Bundle, images: Any, prompt: Any, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        answering(bundle, 300).generate(images, prompt)
    assert "\n" not in str(caught.value)


def test_prompt_too_long(bundle: Bundle) -> None:
    message = (
        "prompt has [0-9]+ tokens, 64 of them visual; this model takes at most 511, so shorten"
    )
    with pytest.raises(RequestError, match=message):
        answering(bundle, 300).generate(PICTURE, "circle " * 600)


def test_too_many_images(bundle: Bundle) -> None:
    with pytest.raises(RequestError, match="512 of them visual; .* give fewer images"):
        answering(bundle, 300).generate([PICTURE] * 8, PROMPT)


@pytest.mark.parametrize("limit", [0, -1, 512])
def test_limit_out_of_range(bundle: Bundle, limit: int) -> None:
    message = (
        f"max_new_tokens is {limit}; after a prompt of [0-9]+ tokens this model can give 1 to"
    )
    with pytest.raises(RequestError, match=message):
        answering(bundle, 300).generate(PICTURE, PROMPT, max_new_tokens=limit)


def test_answer_fills_the_model_s_positions_to_the_last(bundle: Bundle) -> None:
    session = answering(bundle, 300)
    room = 512 - session.generate(PICTURE, PROMPT, max_new_tokens=1).num_prompt_tokens

    assert len(session.generate(PICTURE, PROMPT, max_new_tokens=room).token_ids) == room


# -- pruning ----------------------------------------------------------------------------------


def test_recipe_is_the_default(bundles: BundleFactory) -> None:
    recipe = ExportRecipe(
        stages=STAGES, prune="fastv", keep_ratio=(0.5, 0.25), stride=2, selection="union", seed=4
    )
    bundle = bundles(num_layers=4, image_size=56, recipe=recipe).bundle

    assert default_pruning(bundle) == Pruning(
        criterion="fastv", keep_ratio=(0.5, 0.25), stride=2, selection="union", seed=4
    )
    result = answering(bundle, 300).generate(PICTURE, PROMPT, max_new_tokens=1)
    assert [s.criterion for s in result.stages] == ["fastv", "fastv"]
    assert [s.num_kept for s in result.stages] == [32, 16]


def test_stages_say_what_they_kept(bundle: Bundle) -> None:
    result = answering(bundle, 300).generate(PICTURE, PROMPT, max_new_tokens=2)

    first, second = result.stages
    assert (first.before_layer, second.before_layer) == STAGES
    assert first.num_kept == len(first.kept_indices) == 25  # 19 best and a grid of 9 overlap
    assert second.num_kept == 2
    assert first.keep_ratio == 25 / 64
    assert (first.criterion, first.selection) == ("feather", "fill")
    assert set(second.kept_indices) <= set(first.kept_indices)
    assert result.reason is None


def test_scores_are_spread_over_the_visual_tokens(bundle: Bundle) -> None:
    first, second = answering(bundle, 300).generate(PICTURE, PROMPT, max_new_tokens=1).stages

    assert first.scores.shape == second.scores.shape == (NUM_VISUAL_TOKENS,)
    assert not np.isnan(first.scores).any()
    assert np.flatnonzero(~np.isnan(second.scores)).tolist() == first.kept_indices.tolist()


def test_content_free_criteria_have_no_scores(bundle: Bundle) -> None:
    pruning = Pruning(criterion="uniform", keep_ratio=(0.25,))
    session = answering(bundle, 300)

    result = session.generate(PICTURE, PROMPT, pruning=pruning, max_new_tokens=1)

    assert [s.scores for s in result.stages] == [None, None]
    assert [s.num_kept for s in result.stages] == [16, 16]


@pytest.mark.parametrize(
    ("pruning", "reason"),
    [
        (NONE, "pruning is off"),
        (Pruning(keep_ratio=(1.0,)), "the keep ratio keeps every visual token"),
    ],
)
def test_reason_when_nothing_was_pruned(bundle: Bundle, pruning: Pruning, reason: str) -> None:
    result = answering(bundle, 300).generate(PICTURE, PROMPT, pruning=pruning, max_new_tokens=2)

    assert result.reason == reason
    assert [s.num_kept for s in result.stages] == [NUM_VISUAL_TOKENS] * 2
    assert [s.keep_ratio for s in result.stages] == [1.0, 1.0]


def test_reason_of_an_unsplit_bundle(bundles: BundleFactory) -> None:
    bundle = bundles(num_layers=4, image_size=56, recipe=ExportRecipe(prune="none")).bundle

    result = answering(bundle, 300).generate(PICTURE, PROMPT, pruning=Pruning(), max_new_tokens=2)

    assert result.reason == "the bundle was exported without pruning stages"
    assert result.stages == ()


def test_reason_of_a_tiny_image(bundles: BundleFactory) -> None:
    bundle = bundles(num_layers=4, image_size=21, recipe=ExportRecipe(stages=STAGES)).bundle

    result = answering(bundle, 300).generate(PICTURE, PROMPT, max_new_tokens=2)

    assert result.reason == ("the prompt has only 9 visual tokens; fewer than 16 are not pruned")


@pytest.mark.parametrize(
    ("pruning", "message"),
    [
        (Pruning(criterion="best"), "criterion 'best' is unknown; choose feather, fastv"),
        (Pruning(pre_criterion="best"), "before the decoder 'best' is unknown; choose uniform"),
        (Pruning(keep_ratio=(0.5, 0.4, 0.3)), r"3 values, but this bundle has 2 pruning stage"),
        (Pruning(keep_ratio=(0.3, 0.5)), "must not rise from one stage to the next"),
    ],
)
def test_pruning_that_does_not_fit_the_bundle(
    bundle: Bundle, pruning: Pruning, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        answering(bundle, 300).generate(PICTURE, PROMPT, pruning=pruning)


@pytest.mark.parametrize("name", PRE_CRITERION_NAMES[:-1])
def test_pruned_before_the_decoder(bundle: Bundle, name: str) -> None:
    pruning = Pruning(pre_criterion=name, pre_keep_ratio=0.25, keep_ratio=(0.2, 0.1))
    session = answering(bundle, 300)

    result = session.generate(PICTURE, PROMPT, pruning=pruning, max_new_tokens=3)

    assert [(s.before_layer, s.criterion, s.num_kept) for s in result.stages] == [
        (0, name, 16), (1, "feather", 12), (3, "feather", 6),
    ]  # fmt: skip
    assert result.stages[0].scores is None
    assert result.num_visual_tokens == NUM_VISUAL_TOKENS
    assert result.reason is None


def test_pruned_before_an_unsplit_decoder(bundles: BundleFactory) -> None:
    recipe = ExportRecipe(prune="none", pre_prune="divprune", pre_keep_ratio=0.5)
    bundle = bundles(num_layers=4, image_size=56, recipe=recipe).bundle

    result = answering(bundle, 300).generate([PICTURE, PICTURE], PROMPT, max_new_tokens=3)

    (stage,) = result.stages
    assert (stage.before_layer, stage.criterion, stage.num_kept) == (0, "divprune", 64)
    assert np.bincount(stage.kept_indices // 64).tolist() == [32, 32]
    assert result.reason is None


def test_pruned_only_before_the_decoder(bundle: Bundle) -> None:
    pruning = Pruning(criterion="none", pre_criterion="uniform", pre_keep_ratio=0.25)

    result = answering(bundle, 300).generate(PICTURE, PROMPT, pruning=pruning, max_new_tokens=1)

    assert [(s.criterion, s.num_kept) for s in result.stages] == [
        ("uniform", 16), ("none", 16), ("none", 16),
    ]  # fmt: skip


def test_merged_tokens_are_told_apart(bundle: Bundle) -> None:
    pruning = Pruning(pre_criterion="pooling", pre_keep_ratio=0.25)

    result = answering(bundle, 300).generate(PICTURE, PROMPT, pruning=pruning, max_new_tokens=1)

    assert [stage.is_merged for stage in result.stages] == [True, False, False]
    assert [stage["is_merged"] for stage in result.to_dict()["stages"]] == [True, False, False]
    assert result.stages[0].kept_indices.tolist()[:5] == [0, 2, 4, 6, 16]


def test_regions_hold_before_the_decoder(bundle: Bundle) -> None:
    pruning = Pruning(pre_criterion="divprune", pre_keep_ratio=0.05, keep_ratio=(1.0,))
    regions = [Region(box=(10, 5, 15, 10)), Region(box=(5, 15, 25, 20), rule="forbid")]

    result = answering(bundle, 300).generate(
        PICTURE, PROMPT, pruning=pruning, regions=regions, max_new_tokens=1
    )

    first = result.stages[0]
    assert first.kept_indices.tolist() == [18, 19, 26, 27]
    assert first.quota_change == 1


LEFT_TOP = Region(box=(0, 0, 10, 10))


def test_regions_reach_every_stage(bundle: Bundle) -> None:
    """The picture is 30 x 20; a centre crop leaves 20 x 20 of it to 8 x 8 tokens."""
    regions = [Region(box=(10, 5, 15, 10)), Region(box=(20, 0, 25, 20), rule="forbid")]

    result = answering(bundle, 300).generate(PICTURE, PROMPT, regions=regions, max_new_tokens=1)

    for stage in result.stages:
        assert {18, 19, 26, 27} <= set(stage.kept_indices)
        assert not {6, 7, 14, 15} & set(stage.kept_indices)
    assert [stage.quota_change for stage in result.stages] == [0, 2]
    assert [stage.num_kept for stage in result.stages] == [25, 4]


def test_regions_of_several_images(bundle: Bundle) -> None:
    region = Region(box=(10, 5, 15, 10), image=2)

    result = answering(bundle, 300).generate(
        [PICTURE, PICTURE], PROMPT, regions=[region], max_new_tokens=1
    )

    assert {64 + 18, 64 + 19, 64 + 26, 64 + 27} <= set(result.stages[-1].kept_indices)
    assert not {18, 19, 26, 27} & set(result.stages[-1].kept_indices)


def test_regions_without_pruning_are_refused(bundle: Bundle) -> None:
    message = "regions have no effect, since pruning is off; prune, or leave them out"
    with pytest.raises(RequestError, match=message):
        answering(bundle, 300).generate(PICTURE, PROMPT, pruning=NONE, regions=[LEFT_TOP])


def test_regions_outside_the_picture(bundle: Bundle) -> None:
    with pytest.raises(RequestError, match="not within image 1, which has 30 x 20 pixels"):
        answering(bundle, 300).generate(PICTURE, PROMPT, regions=[Region(box=(0, 0, 31, 1))])


class NanBackend(FakeBackend):
    """Scores overflow, as those of an fp16 graph may."""

    def open(self, file: Path, spec: GraphSpec) -> Graph:
        graph = super().open(file, spec)
        run = graph.run

        def overflow(inputs: Mapping[str, Any]) -> dict[str, Any]:
            outputs = run(inputs)
            if "scores" in outputs and outputs["scores"].shape[1] > 1:
                outputs["scores"][0, 3] = np.nan
            return outputs

        graph.run = overflow
        return graph


def test_scores_that_are_not_finite(bundle: Bundle) -> None:
    session = Session.open(bundle, backend=NanBackend(token_ids=[300]))

    message = "graph decoder_0 gave 1 pruning scores that are not finite; .* --precision fp32"
    with pytest.raises(BackendError, match=message):
        session.generate(PICTURE, PROMPT)


# -- record, opening, closing -----------------------------------------------------------------


def test_record_is_json(bundle: Bundle) -> None:
    result = answering(bundle, 300).generate(PICTURE, PROMPT, max_new_tokens=2)

    record = json.loads(json.dumps(result.to_dict()))

    assert set(record) == {
        "verification",
        "text",
        "token_ids",
        "finish_reason",
        "num_prompt_tokens",
        "num_cached_tokens",
        "num_visual_tokens",
        "rasters",
        "stages",
        "reason",
        "deadline",
        "preprocess_ms",
        "vision_ms",
        "prefill_ms",
        "segment_ms",
        "prune_ms",
        "ttft_ms",
        "tpot_ms",
        "itl_ms",
        "load_ms",
        "peak_rss_mib",
        "backend",
        "device",
        "precision",
        "notes",
    }
    assert record["token_ids"] == [300, 300]
    assert (record["backend"], record["device"], record["precision"]) == ("fake", "cpu", "fp32")
    assert set(record["stages"][0]) == {
        "before_layer",
        "num_kept",
        "keep_ratio",
        "criterion",
        "selection",
        "quota_change",
        "is_merged",
        "kept_indices",
    }
    parts = record["preprocess_ms"] + record["vision_ms"] + record["prefill_ms"]
    assert 0 < parts <= record["ttft_ms"]
    assert len(record["segment_ms"]) == 3
    assert 0 < sum(record["segment_ms"]) + record["prune_ms"] <= record["prefill_ms"]
    assert record["itl_ms"] == [record["tpot_ms"]]


def test_fp16_bundle_is_fed_fp16(bundles: BundleFactory) -> None:
    """The fake refuses what is not of the contract's types."""
    recipe = ExportRecipe(stages=STAGES, precision="fp16")
    bundle = bundles(num_layers=4, image_size=56, recipe=recipe).bundle

    for pruning in (Pruning(), Pruning(selection="union"), Pruning(criterion="fastv"), NONE):
        result = answering(bundle, 300).generate(
            PICTURE, PROMPT, pruning=pruning, max_new_tokens=3
        )
        assert result.precision == "fp16"


def test_opens_a_path_with_a_backend_by_name(bundle: Bundle) -> None:
    with Session.open(str(bundle.path), backend="onnxruntime") as session:
        result = session.generate(PICTURE, PROMPT, max_new_tokens=1)

    assert result.backend == "onnxruntime"


def test_closing_twice_is_fine(bundle: Bundle) -> None:
    with answering(bundle, 300) as session:
        session.close()


def test_a_closed_session_says_so(bundle: Bundle) -> None:
    with answering(bundle, 300) as session:
        pass

    with pytest.raises(RequestError, match="the session is closed; open another"):
        session.generate(PICTURE, PROMPT)


def test_unknown_criterion_without_an_image(bundle: Bundle) -> None:
    with pytest.raises(RequestError, match="criterion 'best' is unknown"):
        answering(bundle, 300).generate([], PROMPT, pruning=Pruning(criterion="best"))


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        Session.open(tmp_path)


def test_embeddings_of_another_model(bundle: Bundle, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle.path, tmp_path / "bundle")
    table = {"embed_tokens.weight": np.zeros((7, 64), np.float32)}
    save_file(table, folder / "onnx" / "embed_tokens.safetensors")
    seal_files(folder)

    with pytest.raises(BundleError, match=r"must hold embed_tokens.weight \[\d+, 64\]; export"):
        answering_at(folder, 3)


def edited(bundle: Bundle, tmp_path: Path, change: Any) -> Path:
    folder = shutil.copytree(bundle.path, tmp_path / "bundle")
    edit_manifest(folder, change)
    return folder


def answering_at(folder: Path, *token_ids: int) -> Session:
    return Session.open(folder, backend=FakeBackend(token_ids=token_ids))
