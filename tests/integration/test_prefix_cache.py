"""What stands before the first image runs once, and answers are those of a session without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.checkpoints import tiny_llava
from support.fake_engines import bundle_with_engines
from support.families.anyres import tiny_llava_next, tiny_llava_onevision
from support.families.gemma import tiny_gemma3, tiny_paligemma
from support.families.idefics3 import tiny_idefics3
from support.families.internvl import tiny_internvl
from support.families.qwen_vl import tiny_qwen_vl
from support.images import random_images

from feather_edge import Session
from feather_edge.pruning import Pruning, Region
from feather_edge.recipes import ExportRecipe
from feather_edge.runtime.backends import create_backend
from feather_edge.runtime.decoder import DecoderChain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from support.bundles import BundleFactory

    from feather_edge.bundle import Bundle
    from feather_edge.runtime.result import Result

SYSTEM = "There are three objects. The blue star is left of the green diamond."
"""Some forty tokens, more than a tiny window sees."""

SHARED = {
    "unpruned": Pruning(criterion="none"),
    "fill": Pruning(criterion="feather", keep_ratio=(0.5, 0.25)),
    "paper": Pruning(criterion="feather", keep_ratio=(0.3,)),
    "union": Pruning(criterion="feather", keep_ratio=(0.4,), selection="union"),
    "fastv": Pruning(criterion="fastv", keep_ratio=(0.3, 0.1)),
    "ivc": Pruning(criterion="ivc", keep_ratio=(0.5, 0.2), selection="union"),
    "uniform": Pruning(criterion="uniform", keep_ratio=(0.25, 0.25)),
    "before": Pruning(criterion="feather", keep_ratio=(0.5, 0.3), pre_criterion="divprune"),
    "pooling": Pruning(criterion="none", pre_criterion="pooling", pre_keep_ratio=0.25),
}
"""Requests that start with what is remembered."""

ANEW = {
    "fastv-full": Pruning(criterion="fastv-full", keep_ratio=(0.3, 0.1)),
    "pyramiddrop": Pruning(criterion="pyramiddrop", keep_ratio=(0.5,)),
    "pyramiddrop-reset": Pruning(criterion="pyramiddrop-reset", keep_ratio=(0.5,)),
    "ivc-value": Pruning(criterion="ivc-value", keep_ratio=(0.5, 0.2)),
}
"""Requests in whose ranking text takes part."""


ENGINES = ExportRecipe(stages=(1, 3), opset="all")
EARLY, LATER = ExportRecipe(stages=(1, 3)), ExportRecipe(stages=(2, 4))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A tiny checkpoint, how it is exported, and what runs it."""

    make: Callable[..., Path] = tiny_llava
    options: tuple[tuple[str, Any], ...] = ()
    recipe: ExportRecipe = EARLY
    backend: str = "onnxruntime"
    atol: float = 2e-4

    def bundle(self, bundles: BundleFactory) -> Bundle:
        return bundles(self.make, recipe=self.recipe, **dict(self.options)).bundle


FOUR_LAYERS = (("num_layers", 4), ("image_size", 56))


def qwen(model_type: str, layout: str) -> Case:
    options = (("model_type", model_type), ("layout", layout))
    return Case(make=tiny_qwen_vl, options=options, recipe=LATER)


def llava(*, backend: str = "onnxruntime", atol: float = 2e-4, **recipe: Any) -> Case:
    return Case(
        options=FOUR_LAYERS,
        recipe=ExportRecipe(stages=(1, 3), **recipe),
        backend=backend,
        atol=atol,
    )


CASES = {
    "llava": llava(),
    "llava-openvino": llava(backend="openvino"),
    "llava-opset18": llava(opset="18"),
    "llava-opset24": llava(opset="24"),
    "llava-fp16": llava(precision="fp16", atol=0.05),
    "llava-int8": llava(precision="int8"),
    "llava-unsplit": Case(options=FOUR_LAYERS, recipe=ExportRecipe(stages=())),
    "llava_next": Case(make=tiny_llava_next, options=(("num_layers", 4),)),
    "llava_onevision": Case(make=tiny_llava_onevision, options=(("num_layers", 4),)),
    "internvl": Case(make=tiny_internvl, options=(("num_layers", 4),)),
    "idefics3": Case(make=tiny_idefics3, options=(("kind", "idefics3"), ("num_layers", 4))),
    "qwen2_vl": qwen("qwen2_vl", "hub"),
    "qwen2_5_vl": qwen("qwen2_5_vl", "hub"),
    "qwen3_vl": qwen("qwen3_vl", "saved"),
    "gemma3-windowed": Case(make=tiny_gemma3, options=(("shape", "windowed"),), recipe=LATER),
    "gemma3-scaled": Case(make=tiny_gemma3, options=(("shape", "scaled"),), recipe=LATER),
    "gemma3-openvino": Case(
        make=tiny_gemma3, options=(("shape", "windowed"),), recipe=LATER, backend="openvino"
    ),
}


@pytest.fixture
def logits(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The logits [V] of every token that chains are asked for, in order."""
    seen: list[np.ndarray] = []
    original = DecoderChain._logits

    def traced(chain: DecoderChain, outputs: dict[str, Any]) -> np.ndarray:
        seen.append(original(chain, outputs))
        return seen[-1]

    monkeypatch.setattr(DecoderChain, "_logits", traced)
    return seen


def conversation(question: str, num_images: int, *, system: str = SYSTEM) -> list[dict[str, Any]]:
    asked = [*[{"type": "image"}] * num_images, {"type": "text", "text": question}]
    return [
        {"role": "system", "content": [{"type": "text", "text": system}]},
        {"role": "user", "content": asked},
    ]


def ask(session: Session, images: Sequence[np.ndarray], pruning: Pruning, **more: Any) -> Result:
    prompt = conversation("where is the circle ?", len(images))
    return session.generate(images, prompt, pruning=pruning, max_new_tokens=4, **more)


def assert_same(found: Result, expected: Result, *, atol: float = 1e-6) -> None:
    assert found.token_ids == expected.token_ids
    assert len(found.stages) == len(expected.stages)
    for ours, theirs in zip(found.stages, expected.stages, strict=True):
        np.testing.assert_array_equal(ours.kept_indices, theirs.kept_indices)
        assert (ours.quota_change, ours.is_merged) == (theirs.quota_change, theirs.is_merged)
        assert (ours.scores is None) == (theirs.scores is None)
        if ours.scores is not None:
            np.testing.assert_allclose(ours.scores, theirs.scores, atol=atol)
    counts = ("num_prompt_tokens", "num_visual_tokens", "reason", "rasters")
    assert all(getattr(found, name) == getattr(expected, name) for name in counts)


@pytest.mark.parametrize("name", CASES)
def test_answers_are_those_without_a_cache(
    bundles: BundleFactory, logits: list[np.ndarray], name: str
) -> None:
    case = CASES[name]
    bundle = case.bundle(bundles)
    prunings = (
        SHARED if bundle.schedule.stages else {n: SHARED[n] for n in ("unpruned", "pooling")}
    )
    with (
        Session.open(bundle, backend=case.backend) as plain,
        Session.open(bundle, backend=case.backend, cache_prefixes=2) as cached,
    ):
        assert not [note for note in cached.notes if "prefix" in note]
        # It is another picture that fills the cache, and another criterion that prunes.
        first = ask(cached, random_images(1, seed=9), prunings["pooling"])
        assert first.num_cached_tokens == 0
        for pruning in prunings.values():
            for num_images in (1, 2):
                images = random_images(num_images, seed=num_images)
                logits.clear()
                expected = ask(plain, images, pruning)
                unaided = [*logits]
                logits.clear()
                found = ask(cached, images, pruning)

                assert_same(found, expected, atol=case.atol)
                np.testing.assert_allclose(logits, unaided, atol=case.atol, rtol=case.atol)
                assert expected.num_cached_tokens == 0
                assert 20 < found.num_cached_tokens < found.num_prompt_tokens


def test_regions_hold(bundles: BundleFactory) -> None:
    bundle = CASES["llava"].bundle(bundles)
    regions = [Region(box=(0, 0, 20, 20), image=2), Region(box=(0, 40, 42, 70), rule="forbid")]
    images = random_images(2, seed=5)
    with Session.open(bundle) as plain, Session.open(bundle, cache_prefixes=1) as cached:
        for _ in range(2):
            found = ask(cached, images, SHARED["fastv"], regions=regions)
        assert_same(found, ask(plain, images, SHARED["fastv"], regions=regions))
    assert found.num_cached_tokens > 0


@pytest.mark.parametrize("name", ANEW)
def test_a_ranking_in_which_text_takes_part_runs_the_whole_prompt(
    bundles: BundleFactory, name: str
) -> None:
    bundle = CASES["llava"].bundle(bundles)
    images = random_images(1, seed=3)
    with Session.open(bundle) as plain, Session.open(bundle, cache_prefixes=1) as cached:
        ask(cached, images, SHARED["fill"])
        found = ask(cached, images, ANEW[name])
        assert found.num_cached_tokens == 0
        assert_same(found, ask(plain, images, ANEW[name]), atol=0)
        assert ask(cached, images, SHARED["fill"]).num_cached_tokens > 0, "it is still known"


def test_another_system_prompt_is_another_prefix(bundles: BundleFactory) -> None:
    bundle = CASES["llava"].bundle(bundles)
    images = random_images(1, seed=4)
    other = conversation("where is the circle ?", 1, system="Yes, no, none.")
    with Session.open(bundle) as plain, Session.open(bundle, cache_prefixes=1) as cached:
        ask(cached, images, SHARED["fill"])
        for num_cached in (False, True):  # there is room for one, so the first one goes
            found = cached.generate(images, other, max_new_tokens=4)
            assert bool(found.num_cached_tokens) is num_cached
            assert_same(found, plain.generate(images, other, max_new_tokens=4))
        assert ask(cached, images, SHARED["fill"]).num_cached_tokens == 0


def test_paligemma_says_why_not(bundles: BundleFactory) -> None:
    bundle = bundles(tiny_paligemma, recipe=LATER).bundle
    with Session.open(bundle) as plain, Session.open(bundle, cache_prefixes=1) as cached:
        for _ in range(2):
            found = cached.generate(random_images(1), "what ?", max_new_tokens=3)
        expected = plain.generate(random_images(1), "what ?", max_new_tokens=3)
    why = "prefixes are not cached: every token of a prompt of paligemma sees the picture"
    assert why in found.notes
    assert found.num_cached_tokens == 0
    assert_same(found, expected, atol=0)


def test_layers_that_round_rows_together_say_why_not(bundles: BundleFactory) -> None:
    bundle = llava(precision="int8-dynamic").bundle(bundles)
    with Session.open(bundle, cache_prefixes=1) as session:
        found = [ask(session, random_images(1), SHARED["fill"]) for _ in range(2)]
    assert [result.num_cached_tokens for result in found] == [0, 0]
    why = (
        "prefixes are not cached: layers of int8-dynamic round all rows of a prompt in the same "
        "steps"
    )
    assert why in found[0].notes


@pytest.mark.usefixtures("trt")
@pytest.mark.parametrize(("opset", "one_profile"), [(18, True), (23, True), (24, False)])
def test_engines_that_take_a_filled_cache_start_with_it(
    bundles: BundleFactory,
    tmp_path: Path,
    logits: list[np.ndarray],
    opset: int,
    one_profile: bool,
) -> None:
    exported = bundles(num_layers=4, image_size=56, recipe=ENGINES).bundle
    bundle = bundle_with_engines(
        exported, tmp_path / "bundle", opset=opset, one_profile=one_profile
    )
    with (
        Session.open(bundle, backend="tensorrt") as plain,
        Session.open(bundle, backend="tensorrt", cache_prefixes=2) as cached,
    ):
        assert not [note for note in cached.notes if "prefix" in note]
        asked = conversation("where ?", 1, system="Yes, no, none.")
        cached.generate(random_images(1, seed=9), asked, max_new_tokens=1)
        for name in ("unpruned", "fill", "uniform"):
            results, heard = [], []
            for session in (plain, cached):
                logits.clear()
                results.append(
                    session.generate(
                        random_images(1), asked, pruning=SHARED[name], max_new_tokens=4
                    )
                )
                heard.append([*logits])
            assert_same(results[1], results[0], atol=2e-4)
            np.testing.assert_allclose(heard[1], heard[0], atol=2e-4, rtol=2e-4)
            assert (results[0].num_cached_tokens, results[1].num_cached_tokens > 10) == (0, True)


@pytest.mark.usefixtures("trt")
@pytest.mark.parametrize("opset", [18, 23])
def test_engines_that_begin_with_an_empty_cache_say_why_not(
    bundles: BundleFactory, tmp_path: Path, opset: int
) -> None:
    exported = bundles(num_layers=4, image_size=56, recipe=ENGINES).bundle
    bundle = bundle_with_engines(exported, tmp_path / "bundle", opset=opset)
    with Session.open(bundle, backend="tensorrt", cache_prefixes=1) as session:
        found = [session.generate(random_images(1), "hi", max_new_tokens=3) for _ in range(2)]
    assert [result.num_cached_tokens for result in found] == [0, 0]
    why = (
        "prefixes are not cached: backend tensorrt runs no prompt after tokens that are cached; "
        "build its engines with --opset 24, or with --profiles one"
    )
    assert why in found[0].notes


@pytest.mark.parametrize("in_place", [True, False])
def test_causal_graphs_are_rewritten_or_not(bundles: BundleFactory, in_place: bool) -> None:
    """Both forms of ONNX Runtime are covered: its own operator in place, and grown caches."""
    bundle = CASES["llava" if in_place else "llava-opset18"].bundle(bundles)
    spec = bundle.decoders[0]
    graph = create_backend("onnxruntime", bundle).open(bundle.path / spec.file, spec)
    assert bool(graph.spec.caches_in_place) is in_place
