"""Optimisation profiles: the shapes an engine accepts, and the ones it is tuned for.

Letters as in ``feather_edge.graphs``. A decoder segment is one engine with two profiles, because
its two uses have nothing in common:

=========  ===============  =======================  ==========================
profile    S (sequence)     P (past_sequence)        K (values of num_kept)
=========  ===============  =======================  ==========================
prefill    1 to the limit   0: the cache is empty    1 to all rows, see below
decode     1                1 to the capacity - 1    1: the token passes through
=========  ===============  =======================  ==========================

Caches in place have the capacity's size in both, as TensorRT demands, and T, the slots that
attention sees, takes the place of P: S in a prefill, up to the capacity in a decode step.

All rows may leave although the next segment takes fewer, because the host finishes some plans;
where that is more than TopK can do, K ends with what the next segment takes.

TensorRT-RTX stores the weights once per profile (seen with 1.7: 362 MiB of engine for 179 MiB of
weights), so a device that is short of memory may ask for one profile, ``both``, that spans the
two and is tuned for prefill.

Every input's shape comes from one table of dimensions, so names that stand on several inputs
agree, which TensorRT demands, and where caches grow T = P + S holds in every column.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from feather_edge.engine_record import OptimizationProfile, ShapeRange
from feather_edge.errors import BuildError, RecipeError, RequestError
from feather_edge.graphs import CACHE_CAPACITY
from feather_edge.pruning import Pruning
from feather_edge.pruning.forecast import forecast
from feather_edge.pruning.request import MIN_VISUAL_TOKENS
from feather_edge.runtime.kv_cache import num_seen_slots
from feather_edge.runtime.spans import typical_layout

if TYPE_CHECKING:
    from feather_edge.engine_record import ProfileName
    from feather_edge.graphs import GraphSpec
    from feather_edge.manifest import BundleManifest
    from feather_edge.pruning import PruningSchedule
    from feather_edge.recipes import EngineProfiles, EngineRecipe

__all__ = [
    "MAX_TOP_K",
    "Limits",
    "check_top_k",
    "decoder_profiles",
    "read_limits",
    "vision_profiles",
]

_Sizes = dict[str, tuple[int, int, int]]

MAX_TOP_K = 3840
"""Largest K of TensorRT's own TopK; the plugin has no such limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the engines of a bundle must take, per segment where it differs.

    Attributes:
        max_rows: rows that may enter each segment in a prefill.
        opt_rows: rows that enter it with one image and the bundle's own pruning.
        capacity: tokens that each segment's KV cache holds.
        batch: sequences at once.
        vision: sizes of the vision encoder's named dimensions, smallest, tuned and largest.
        notes: limits that the model set, not the recipe.
    """

    max_rows: tuple[int, ...]
    opt_rows: tuple[int, ...]
    capacity: tuple[int, ...]
    batch: int
    vision: dict[str, tuple[int, int, int]]
    notes: tuple[str, ...] = ()


def read_limits(
    manifest: BundleManifest, schedule: PruningSchedule, recipe: EngineRecipe
) -> Limits:
    """Settle the limits of every segment.

    The keep ratio belongs to a request, and a request may keep everything, so with
    ``max_keep_ratio`` 1 each segment takes what the first one takes. Below 1 a later segment takes
    the text and that share of the visual tokens; small images, which are never pruned, still fit.

    Raises:
        RecipeError: if the recipe's limits do not fit the bundle.
    """
    ratios = _stage_ratios(recipe, len(schedule.stages))
    num_visual, per_image = recipe.max_visual_tokens, typical_layout(manifest).num_visual_tokens
    if per_image > num_visual:
        raise RecipeError(
            f"max_visual_tokens is {num_visual}, but one image of this bundle is "
            f"{per_image} visual tokens; raise it to a multiple of {per_image}"
        )
    capacity = min(recipe.max_cache_capacity, manifest.max_positions)
    # One slot at least for an answer.
    rows = min(recipe.max_prompt_tokens + num_visual, capacity - 1)
    num_new = capacity - rows
    max_rows = [rows]
    for ratio in ratios:
        num_kept = max(math.ceil(ratio * num_visual), min(num_visual, MIN_VISUAL_TOKENS - 1))
        max_rows.append(min(max_rows[-1], recipe.max_prompt_tokens + num_kept))
    counts, tuning_notes = _opt_visual_counts(manifest, schedule, recipe.opt_prompt_tokens)
    opt_rows = [
        min(recipe.opt_prompt_tokens + count, limit)
        for count, limit in zip(counts, max_rows, strict=True)
    ]
    return Limits(
        max_rows=tuple(max_rows),
        opt_rows=tuple(opt_rows),
        capacity=tuple(limit + num_new for limit in max_rows),
        batch=recipe.max_batch_size,
        vision=manifest.image.vision_dims(recipe.max_visual_tokens),
        notes=_notes(manifest, recipe) + tuning_notes,
    )


def decoder_profiles(
    spec: GraphSpec, index: int, limits: Limits, *, profiles: EngineProfiles = "two"
) -> tuple[OptimizationProfile, ...]:
    """Return the profiles of segment ``index``, whose contract is given, prefill first."""
    prefill, decode = _decoder_sizes(spec, index, limits)
    is_last = index == len(limits.max_rows) - 1
    kept = None if is_last else (1, limits.opt_rows[index + 1], _max_kept(limits, index))
    passing = None if is_last else (1, 1, 1)
    if profiles == "one":
        spanning = {
            dim: (min(low, decode[dim][0]), opt, max(high, decode[dim][2]))
            for dim, (low, opt, high) in prefill.items()
        }
        return (_profile("both", spec, spanning, num_kept=kept),)
    return (
        _profile("prefill", spec, prefill, num_kept=kept),
        _profile("decode", spec, decode, num_kept=passing),
    )


def _decoder_sizes(spec: GraphSpec, index: int, limits: Limits) -> tuple[_Sizes, _Sizes]:
    """Return the dimensions of prefill and decode, (min, opt, max) each."""
    rows, opt, capacity = limits.max_rows[index], limits.opt_rows[index], limits.capacity[index]
    sequence, one = (1, opt, rows), (1, 1, 1)
    both = {"batch": (1, 1, limits.batch)}
    if not spec.caches_in_place:
        past = (1, min(opt, capacity - 1), capacity - 1)
        return (
            both | {"sequence": sequence, "past_sequence": (0, 0, 0)},
            both | {"sequence": one, "past_sequence": past},
        )
    both[CACHE_CAPACITY] = (capacity, capacity, capacity)
    seen = (num_seen_slots(1, capacity), num_seen_slots(opt + 1, capacity), capacity)
    return (
        both | {"sequence": sequence, "total_sequence": sequence},
        both | {"sequence": one, "total_sequence": seen},
    )


def vision_profiles(spec: GraphSpec, limits: Limits) -> tuple[OptimizationProfile]:
    """Return the one profile of the vision encoder: one image up to all of a request."""
    return (_profile("images", spec, limits.vision, num_kept=None),)


def check_top_k(limits: Limits) -> None:
    """Refuse limits that need a larger K than TensorRT's TopK has, text rows included.

    Raises:
        BuildError: naming the segment, the count and the ways out.
    """
    for index, num_kept in enumerate(limits.max_rows[1:]):
        if num_kept > MAX_TOP_K:
            raise BuildError(
                f"decoder_{index} may have to keep {num_kept} rows (text and visual tokens), but "
                f"TensorRT's TopK keeps at most {MAX_TOP_K}; lower --max-visual-tokens or "
                f"--max-prompt-tokens, give --max-keep-ratio below 1, or use --plugin"
            )


def _max_kept(limits: Limits, index: int) -> int:
    """Return the largest K of a segment.

    A plan that the host finishes (a union, quotas of several images) has every row leave the
    graph, more than the next segment takes; it must fit as well, unless TopK cannot do it.
    """
    rows = limits.max_rows[index]
    return rows if rows <= MAX_TOP_K else limits.max_rows[index + 1]


def _profile(
    name: ProfileName,
    spec: GraphSpec,
    dims: _Sizes,
    *,
    num_kept: tuple[int, int, int] | None,
) -> OptimizationProfile:
    sizes = dict(dims)
    if "past_sequence" in sizes:
        low, opt, high = (
            p + s for p, s in zip(sizes["past_sequence"], sizes["sequence"], strict=True)
        )
        sizes["total_sequence"] = (low, opt, high)
    inputs = {}
    for tensor in spec.inputs:
        if tensor.name == "num_kept":
            assert num_kept is not None  # noqa: S101 - only the last segment has none
            columns: list[tuple[int, ...]] = [(value,) for value in num_kept]
        else:
            columns = [
                tuple(sizes[d][column] if isinstance(d, str) else d for d in tensor.shape)
                for column in range(3)
            ]
        low_shape, opt_shape, high_shape = columns
        inputs[tensor.name] = ShapeRange(min=low_shape, opt=opt_shape, max=high_shape)
    return OptimizationProfile(name=name, inputs=inputs)


def _stage_ratios(recipe: EngineRecipe, num_stages: int) -> tuple[float, ...]:
    ratios = recipe.max_keep_ratio
    if len(ratios) == 1:
        return ratios * num_stages
    if len(ratios) != num_stages:
        raise RecipeError(
            f"max_keep_ratio has {len(ratios)} values, but this bundle has {num_stages} pruning "
            f"stage(s); give 1 value or {num_stages}"
        )
    return ratios


def _opt_visual_counts(
    manifest: BundleManifest, schedule: PruningSchedule, num_text: int
) -> tuple[list[int], tuple[str, ...]]:
    """Return the visual tokens of one image that enter each segment with the bundle's pruning.

    A bundle may hold defaults that its own schedule refuses, when every request names others;
    its engines are then tuned for unpruned prompts, with a note.
    """
    layout = typical_layout(manifest, num_text_tokens=num_text)
    try:
        return forecast(Pruning.from_recipe(manifest.recipe), schedule, layout), ()
    except RequestError as error:
        note = (
            f"engines are tuned for unpruned prompts, as the bundle's own pruning fails: {error}"
        )
        return [layout.num_visual_tokens] * len(schedule.segments), (note,)


def _notes(manifest: BundleManifest, recipe: EngineRecipe) -> tuple[str, ...]:
    if manifest.max_positions >= recipe.max_cache_capacity:
        return ()
    return (
        (
            f"max_cache_capacity is {recipe.max_cache_capacity}, but the model was made for "
            f"{manifest.max_positions} positions; the engines end there"
        ),
    )
