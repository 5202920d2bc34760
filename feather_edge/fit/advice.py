"""What would make a model fit: the estimate again, with one thing changed at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from feather_edge.errors import RecipeError
from feather_edge.runtime.spans import typical_layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from feather_edge.fit.sizes import ModelSizes
    from feather_edge.recipes import EngineRecipe, ExportRecipe

__all__ = ["Change", "Question", "changes"]

SHORT_PROMPT, SHORT_ANSWER = 64, 128
"""Tokens of a short question in a chat template, and of a short answer."""
LESS_KEPT = 0.5


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked: which export, which limits, how many builds at once."""

    export: ExportRecipe
    engine: EngineRecipe
    jobs: int


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change to a question: in words, what to type, and what is asked then."""

    words: str
    options: str
    question: Question


def changes(question: Question, sizes: ModelSizes, *, on_gpu: bool) -> Iterator[Change]:
    """Yield the changes that can be made, each alone."""
    if sizes.checkpoint is not None:
        yield from _precisions(question, on_gpu=on_gpu)
    yield from _limits(question, sizes)
    engine = question.engine
    if on_gpu and engine.profiles == "two":
        one = msgspec.structs.replace(engine, profiles="one")
        yield Change(
            words="weights once instead of once per profile",
            options="--profiles one",
            question=replace(question, engine=one),
        )
    if on_gpu and question.jobs > 1:
        yield Change(
            words="one engine at a time",
            options="--jobs 1",
            question=replace(question, jobs=1),
        )


def _precisions(question: Question, *, on_gpu: bool) -> Iterator[Change]:
    floats = "fp16" if on_gpu else "fp32"
    for precision in ("fp16", "int8", "int4"):
        has_integers = precision != "fp16"
        if question.export.precision == precision or (precision == "fp16" and not on_gpu):
            continue
        try:
            export = msgspec.structs.replace(
                question.export,
                precision=precision,
                vision_precision=None,
                head_precision=None,
                activations=floats if has_integers else None,
                opset=None,
            )
        except RecipeError:
            continue
        typed = f" --activations {floats}" if has_integers and floats != "fp32" else ""
        yield Change(
            words=f"export in {precision}",
            options=f"--precision {precision}{typed}",
            question=replace(question, export=export),
        )


def _limits(question: Question, sizes: ModelSizes) -> Iterator[Change]:
    engine = question.engine
    per_image = typical_layout(sizes.manifest).num_visual_tokens
    answer = engine.max_cache_capacity - engine.max_prompt_tokens - engine.max_visual_tokens
    text = min(engine.max_prompt_tokens, SHORT_PROMPT)
    shorter = _with_limits(engine, text, engine.max_visual_tokens, min(answer, SHORT_ANSWER))
    if shorter != engine:
        yield Change(
            words=f"prompts of {text} text tokens, answers of {min(answer, SHORT_ANSWER)}",
            options=(
                f"--max-prompt-tokens {text} --max-cache-capacity {shorter.max_cache_capacity}"
            ),
            question=replace(question, engine=shorter),
        )
    if per_image < engine.max_visual_tokens:
        fewer = _with_limits(engine, engine.max_prompt_tokens, per_image, answer)
        yield Change(
            words=f"one picture at a time, {per_image} visual tokens",
            options=(
                f"--max-visual-tokens {per_image} --max-cache-capacity {fewer.max_cache_capacity}"
            ),
            question=replace(question, engine=fewer),
        )
    if sizes.schedule.stages and max(engine.max_keep_ratio) > LESS_KEPT:
        less = msgspec.structs.replace(engine, max_keep_ratio=(LESS_KEPT,))
        yield Change(
            words=f"at most {LESS_KEPT:.0%} of the visual tokens go on after a stage",
            options=f"--max-keep-ratio {LESS_KEPT}",
            question=replace(question, engine=less),
        )


def _with_limits(engine: EngineRecipe, text: int, visual: int, answer: int) -> EngineRecipe:
    return msgspec.structs.replace(
        engine,
        max_prompt_tokens=text,
        opt_prompt_tokens=min(engine.opt_prompt_tokens, text),
        max_visual_tokens=visual,
        max_cache_capacity=text + visual + answer,
    )
