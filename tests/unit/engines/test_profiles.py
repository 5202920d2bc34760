"""Optimisation profiles: arithmetic that TensorRT would otherwise check, late or not at all."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engines import manifest_of

from feather_edge.engines.profiles import (
    MAX_TOP_K,
    Limits,
    check_top_k,
    decoder_profiles,
    read_limits,
    vision_profiles,
)
from feather_edge.errors import BuildError, RecipeError
from feather_edge.pruning import PruningSchedule
from feather_edge.recipes import EngineRecipe, ExportRecipe
from feather_edge.runtime.kv_cache import num_seen_slots

if TYPE_CHECKING:
    from feather_edge.engine_record import OptimizationProfile

ENDS = ("min", "opt", "max")


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, PruningSchedule, EngineRecipe]:
    num_layers = draw(st.integers(2, 12))
    stages = draw(st.sets(st.integers(1, num_layers - 1), max_size=3))
    grid = (draw(st.integers(1, 20)), draw(st.integers(1, 20)))
    num_images = draw(st.integers(1, 4))
    num_text = draw(st.integers(1, 600))
    num_visual = grid[0] * grid[1] * num_images + draw(st.integers(0, 5))
    ratio = draw(st.floats(0.01, 1))
    recipe = EngineRecipe(
        max_prompt_tokens=num_text,
        max_visual_tokens=num_visual,
        max_cache_capacity=num_text + num_visual + draw(st.integers(1, 500)),
        max_batch_size=draw(st.integers(1, 4)),
        max_keep_ratio=(ratio,),
        opt_prompt_tokens=draw(st.integers(1, num_text)),
    )
    export = ExportRecipe(
        stages=tuple(sorted(stages)),
        prune=draw(st.sampled_from(["feather", "fastv", "ivc", "uniform", "none"])),
        pre_prune=draw(st.sampled_from(["none", "divprune"])),
        keep_ratio=(draw(st.floats(0.05, 1)),) * max(1, len(stages)),
        stride=draw(st.integers(0, 4)),
    )
    manifest = manifest_of(
        num_layers=num_layers,
        recipe=export,
        grid=grid,
        max_positions=draw(st.sampled_from([512, 4096, 32768])),
    )
    return manifest, PruningSchedule(num_layers=num_layers, stages=export.stages or ()), recipe


def all_profiles(
    case: Any, *, opset: int = 23
) -> list[tuple[int, Any, OptimizationProfile, OptimizationProfile]]:
    manifest, schedule, recipe = case
    limits = read_limits(manifest, schedule, recipe)
    found = []
    for index, graph in enumerate(manifest.graphs[1:]):
        (form,) = (form for form in graph.forms if form.opset == opset)
        spec = graph.of(form)
        prefill, decode = decoder_profiles(spec, index, limits)
        found.append((index, spec, prefill, decode))
    return found


@given(cases())
def test_every_input_has_a_range_and_ranges_rise(case: Any) -> None:
    for _, spec, *profiles in [*all_profiles(case), *all_profiles(case, opset=24)]:
        for profile in profiles:
            assert set(profile.inputs) == {tensor.name for tensor in spec.inputs}
            for span in profile.inputs.values():
                for low, opt, high in zip(span.min, span.opt, span.max, strict=True):
                    assert 0 <= low <= opt <= high


@given(cases())
def test_a_name_has_one_size_in_every_input(case: Any) -> None:
    for _, spec, *profiles in [*all_profiles(case), *all_profiles(case, opset=24)]:
        for profile in profiles:
            for end in ENDS:
                sizes: dict[str, set[int]] = {}
                for tensor in spec.inputs:
                    shape = getattr(profile.inputs[tensor.name], end)
                    for name, size in zip(tensor.shape, shape, strict=True):
                        if isinstance(name, str):
                            sizes.setdefault(name, set()).add(size)
                        elif tensor.name != "num_kept":
                            assert size == name
                assert all(len(seen) == 1 for seen in sizes.values())
                if spec.caches_in_place:
                    continue
                (past,), (new,), (total,) = (
                    sizes[name] for name in ("past_sequence", "sequence", "total_sequence")
                )
                assert past + new == total


@given(cases())
def test_num_kept_never_exceeds_the_rows_and_is_what_the_next_segment_takes(case: Any) -> None:
    found = all_profiles(case)
    for (_, _, prefill, decode), (_, _, after, _) in itertools.pairwise(found):
        for profile in (prefill, decode):
            for end in ENDS:
                kept = getattr(profile.inputs["num_kept"], end)[0]
                assert 1 <= kept <= getattr(profile.inputs["score_mask"], end)[1]
        entering = after.inputs["hidden_states"]
        assert prefill.inputs["num_kept"].max[0] >= entering.max[1]
        assert prefill.inputs["num_kept"].opt[0] == entering.opt[1]
        assert decode.inputs["num_kept"] == msgspec.structs.replace(
            decode.inputs["num_kept"], min=(1,), opt=(1,), max=(1,)
        )
    assert "num_kept" not in found[-1][2].inputs


@given(cases())
def test_prefill_starts_empty_and_decode_reaches_the_capacity(case: Any) -> None:
    manifest, schedule, recipe = case
    limits = read_limits(manifest, schedule, recipe)
    cache = f"past_key_values.{0}.key"
    for index, spec, prefill, decode in all_profiles(case):
        cache = next(t.name for t in spec.inputs if t.name.startswith("past_key_values."))
        assert {getattr(prefill.inputs[cache], end)[2] for end in ENDS} == {0}
        assert decode.inputs[cache].min[2] == 1
        assert decode.inputs["attention_mask"].max[3] == limits.capacity[index]
        assert decode.inputs["cos"].max[1] == 1
        # What a prefill leaves in the cache, a decode step can start from.
        assert limits.max_rows[index] <= decode.inputs[cache].max[2]
    assert limits.capacity[0] <= min(recipe.max_cache_capacity, manifest.max_positions)


@given(cases(), st.data())
def test_every_run_over_caches_in_place_fits_its_profile(case: Any, data: st.DataObject) -> None:
    """Of any prompt and answer within the limits, what the runtime asks for."""
    limits = read_limits(*case)
    for index, spec, prefill, decode in all_profiles(case, opset=24):
        capacity, rows = limits.capacity[index], data.draw(st.integers(1, limits.max_rows[index]))
        caches = [prefill.inputs[past] for past in spec.caches_in_place.values()]
        assert {getattr(span, end)[2] for span in caches for end in ENDS} == {capacity}
        assert prefill.inputs["write_indices"].max == (case[2].max_batch_size,)
        for profile, num_new, seen in (
            (prefill, rows, rows),
            (decode, 1, num_seen_slots(data.draw(st.integers(rows + 1, capacity)), capacity)),
        ):
            assert profile.inputs["attention_mask"].distance((1, 1, num_new, seen)) == 0
            assert profile.inputs["cos"].min[1] <= num_new <= profile.inputs["cos"].max[1]


@given(cases())
def test_whatever_a_request_may_keep_fits(case: Any) -> None:
    """At the largest ratio, and for small prompts, which are not pruned at all."""
    manifest, schedule, recipe = case
    limits = read_limits(manifest, schedule, recipe)
    num_visual = recipe.max_visual_tokens
    ratio = recipe.max_keep_ratio[0]
    for rows in limits.max_rows[1:]:
        if limits.max_rows[0] < recipe.max_prompt_tokens + num_visual:
            continue  # the model's own length is the limit
        assert rows >= recipe.max_prompt_tokens + int(ratio * num_visual)
        assert rows >= recipe.max_prompt_tokens + min(num_visual, 15)
        assert ratio < 1 or rows == limits.max_rows[0]


def test_the_tuned_size_is_the_bundles_own_pruning() -> None:
    # FEATHER at 0.3 of 196 tokens: 58 by rank and the grid of 25, then 0.09.
    manifest = manifest_of(num_layers=8, recipe=ExportRecipe(stages=(2, 4)), grid=(14, 14))
    schedule = PruningSchedule(num_layers=8, stages=(2, 4))
    limits = read_limits(manifest, schedule, EngineRecipe(opt_prompt_tokens=64))
    assert limits.opt_rows[0] == 64 + 196
    assert limits.opt_rows[0] > limits.opt_rows[1] > limits.opt_rows[2] > 64
    assert limits.max_rows == (512 + 1024,) * 3
    assert limits.vision == {"num_images": (1, 1, 5)}


def test_a_smaller_largest_ratio_saves_memory_in_later_segments() -> None:
    manifest = manifest_of(num_layers=8, recipe=ExportRecipe(stages=(2, 4)), grid=(10, 10))
    schedule = PruningSchedule(num_layers=8, stages=(2, 4))
    recipe = EngineRecipe(
        max_prompt_tokens=100, max_visual_tokens=1000, max_cache_capacity=1200,
        max_keep_ratio=(0.5, 0.1), opt_prompt_tokens=10,
    )  # fmt: skip
    limits = read_limits(manifest, schedule, recipe)
    assert limits.max_rows == (1100, 600, 200)
    assert limits.capacity == (1200, 700, 300)
    prefill, _ = decoder_profiles(manifest.graphs[1], 0, limits)
    assert prefill.inputs["num_kept"].max == (1100,)  # a union leaves the choice to the host


def test_where_top_k_cannot_take_all_rows_it_takes_what_goes_on() -> None:
    manifest = manifest_of(
        num_layers=2, recipe=ExportRecipe(stages=(1,)), grid=(10, 10), max_positions=32768
    )
    recipe = EngineRecipe(
        max_prompt_tokens=100, max_visual_tokens=5000, max_cache_capacity=6000,
        max_keep_ratio=(0.5,),
    )  # fmt: skip
    limits = read_limits(manifest, PruningSchedule(num_layers=2, stages=(1,)), recipe)
    check_top_k(limits)
    prefill, _ = decoder_profiles(manifest.graphs[1], 0, limits)
    assert (prefill.inputs["score_mask"].max, prefill.inputs["num_kept"].max) == (
        (1, 5100), (2600,),
    )  # fmt: skip


@given(cases())
def test_one_profile_spans_the_two(case: Any) -> None:
    manifest, schedule, recipe = case
    limits = read_limits(manifest, schedule, recipe)
    for index, spec, prefill, decode in all_profiles(case):
        (both,) = decoder_profiles(spec, index, limits, profiles="one")
        for name, span in both.inputs.items():
            for profile in (prefill, decode):
                assert all(a <= b for a, b in zip(span.min, profile.inputs[name].min, strict=True))
                assert all(a >= b for a, b in zip(span.max, profile.inputs[name].max, strict=True))
            assert span.opt == prefill.inputs[name].opt


def test_the_vision_encoder_takes_as_many_images_as_a_request() -> None:
    manifest = manifest_of(num_layers=2, recipe=ExportRecipe(stages=()), grid=(10, 10))
    limits = read_limits(manifest, PruningSchedule(num_layers=2), EngineRecipe())
    (profile,) = vision_profiles(manifest.graphs[0], limits)
    span = profile.inputs["pixel_values"]
    assert [shape[0] for shape in (span.min, span.opt, span.max)] == [1, 1, 10]
    assert span.max[1:] == (3, 28, 28)


def test_a_model_that_ends_earlier_sets_the_limit_and_says_so() -> None:
    manifest = manifest_of(
        num_layers=2, recipe=ExportRecipe(stages=(1,)), grid=(10, 10), max_positions=300
    )
    limits = read_limits(manifest, PruningSchedule(num_layers=2, stages=(1,)), EngineRecipe())
    assert limits.max_rows == (299, 299)
    assert limits.capacity == (300, 300)
    assert "made for 300 positions" in limits.notes[0]


def test_a_bundle_whose_own_pruning_fails_still_builds() -> None:
    recipe = ExportRecipe(keep_ratio=(0.5, 0.4, 0.3))
    manifest = manifest_of(num_layers=4, recipe=recipe, grid=(10, 10))
    schedule = PruningSchedule(num_layers=4, stages=(1, 2))
    limits = read_limits(manifest, schedule, EngineRecipe())
    assert limits.opt_rows == (164,) * 3
    assert "tuned for unpruned prompts" in limits.notes[0]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_visual_tokens": 99}, "one image of this bundle is 100 visual tokens"),
        (
            {"max_keep_ratio": (0.5, 0.4, 0.3)},
            "max_keep_ratio has 3 values, but this bundle has 1",
        ),
    ],
)
def test_limits_that_do_not_fit_the_bundle(options: dict[str, Any], text: str) -> None:
    manifest = manifest_of(num_layers=2, recipe=ExportRecipe(stages=(1,)), grid=(10, 10))
    schedule = PruningSchedule(num_layers=2, stages=(1,))
    with pytest.raises(RecipeError, match=text):
        read_limits(manifest, schedule, EngineRecipe(**options))


def test_top_k_has_a_limit() -> None:
    def limits(num_kept: int) -> Limits:
        return Limits(
            max_rows=(5000, num_kept), opt_rows=(9, 9), capacity=(6000, 6000), batch=1,
            vision={"num_images": (1, 1, 1)},
        )  # fmt: skip

    check_top_k(limits(MAX_TOP_K))
    with pytest.raises(BuildError, match="decoder_0 may have to keep 3841 rows") as error:
        check_top_k(limits(MAX_TOP_K + 1))
    for way_out in ("--max-visual-tokens", "--max-keep-ratio", "--plugin"):
        assert way_out in str(error.value)
