"""Every criterion, as an end-to-end selection on made-up scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.selection import (
    reference_build_keep,
    reference_keep_count,
    reference_stage1,
    reference_stage2,
)

from feather_edge.errors import RequestError
from feather_edge.pruning import CRITERION_NAMES, Layout, Pruning, VisualSpan, criterion
from feather_edge.pruning.criteria.ivc import coordinate_rows
from feather_edge.pruning.criteria.uniform import bayer_rank
from feather_edge.pruning.selection import stride_grid

PAPER_SIDE = 27
FREQUENCIES = (1e4 ** -np.linspace(0, 1, 8, endpoint=False)).astype(np.float32)
ALL = CRITERION_NAMES[:-1]


def image_layout(*shapes: tuple[int, int], before: int = 1, between: int = 2) -> Layout:
    """Text before, between and after images of the given heights and widths."""
    end, spans = before, []
    for height, width in shapes:
        spans.append(VisualSpan(start=end, height=height, width=width))
        end += height * width + between
    angles = np.arange(end + 3)[:, None] * FREQUENCIES.astype(np.float64)
    return Layout.full(end + 3, spans, angles=angles)


def run(
    pruning: Pruning, layout: Layout, *, num_stages: int = 2, seed: int = 0, levels: int = 0
) -> list[Layout]:
    """Prune stage after stage on random scores; with ``levels``, scores of so few values."""
    rng = np.random.default_rng(seed)
    layouts = []
    for stage in range(num_stages):
        plan = criterion(pruning.criterion).plan(pruning, stage, num_stages, layout)
        scores = rng.random(layout.num_rows, np.float32)
        if levels:
            scores = np.floor(scores * levels) / np.float32(levels)
        layout = layout.keep(plan.select(scores, layout))
        layouts.append(layout)
    return layouts


# -- FEATHER: published facts -----------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_paper_counts_of_the_union(seed: int) -> None:
    layout = image_layout((PAPER_SIDE, PAPER_SIDE))

    first, second = run(Pruning(keep_ratio=(1 - 0.7,), selection="union"), layout, seed=seed)

    assert 218 <= first.num_kept <= 299
    assert 19 <= second.num_kept <= 26
    assert second.num_kept == int(first.num_kept * 0.3**2)
    assert set(stride_grid(27, 27, 3)) <= set(first.kept_indices)


def test_paper_counts_of_fill() -> None:
    first, second = run(Pruning(), image_layout((PAPER_SIDE, PAPER_SIDE)))

    assert first.num_kept == 275
    assert second.num_kept == 24
    assert round(100 * second.num_kept / 729, 1) == 3.3


def test_paper_top_count_without_a_grid() -> None:
    first, _ = run(Pruning(stride=0), image_layout((PAPER_SIDE, PAPER_SIDE)))

    assert first.num_kept == 218


@pytest.mark.parametrize(("agreement", "expected"), [("same", 218), ("disjoint", 299)])
def test_the_union_s_extremes(agreement: str, expected: int) -> None:
    layout = image_layout((PAPER_SIDE, PAPER_SIDE))
    scores = np.full(729, 0.5, np.float32)
    scores[stride_grid(27, 27, 3)] = 1.0 if agreement == "same" else 0.0
    rows = np.zeros(layout.num_rows, np.float32)
    rows[layout.is_visual] = scores
    plan = criterion("feather").plan(Pruning(selection="union"), 0, 2, layout)

    assert layout.keep(plan.select(rows, layout)).num_kept == expected


def test_feather_scores_without_rotary_over_visual_tokens_in_both_stages() -> None:
    layout = image_layout((8, 8))
    for stage in (0, 1):
        plan = criterion("feather").plan(Pruning(), stage, 2, layout)
        assert (plan.score_rotation, plan.score_domain) == ("none", "visual")
        assert plan.uses_scores


@pytest.mark.parametrize(
    ("name", "domain"), [("fastv", "visual"), ("fastv-full", "sequence")], ids=str
)
def test_fastv_scores_with_rotary_over_its_domain(name: str, domain: str) -> None:
    plan = criterion(name).plan(Pruning(criterion=name), 0, 1, image_layout((8, 8)))

    assert (plan.score_rotation, plan.score_domain) == ("rotary", domain)


@pytest.mark.parametrize("name", ["uniform", "random"])
def test_baselines_do_not_look(name: str) -> None:
    plan = criterion(name).plan(Pruning(criterion=name), 0, 1, image_layout((8, 8), (8, 8)))

    assert not plan.uses_scores
    assert not plan.needs_host


# -- FEATHER against the port of the paper's code ---------------------------------------------


@given(
    side=st.integers(1, 14),
    keep=st.floats(0.01, 1.0),
    stride=st.integers(0, 6),
    selection=st.sampled_from(["union", "fill"]),
    levels=st.sampled_from([0, 1, 3]),
    seed=st.integers(0, 1000),
)
def test_feather_is_the_reference(  # noqa: PLR0917 - drawn by name
    side: int, keep: float, stride: int, selection: str, levels: int, seed: int
) -> None:
    layout = image_layout((side, side))
    pruning = Pruning(keep_ratio=(keep,), stride=stride, selection=selection)
    first, second = run(pruning, layout, seed=seed, levels=levels)

    rng = np.random.default_rng(seed)

    def scores(num_rows: int, visual: np.ndarray) -> np.ndarray:
        drawn = rng.random(num_rows, np.float32)
        return (np.floor(drawn * levels) / np.float32(levels) if levels else drawn)[visual]

    n = side * side
    top = max(1, reference_keep_count(n, keep))
    grid = stride_grid(side, side, stride)
    budget = min(n, round(top + len(grid) * (1 - top / n)))
    stage1 = scores(layout.num_rows, layout.is_visual)
    ratio = keep if reference_keep_count(n, keep) else 1 / n  # our keep count is never 0
    expected = reference_stage1(
        stage1, side, side, keep=ratio, st=stride, mode=selection, budget=budget
    )
    assert first.kept_indices.tolist() == expected.tolist()
    stage2 = scores(first.num_rows, first.is_visual)
    survivors = reference_stage2(stage2, keep=keep**2, min_keep=1)
    assert second.kept_indices.tolist() == expected[survivors].tolist()
    span = layout.spans[0]
    rows = reference_build_keep(
        layout.num_rows, [(span.start, n)], [expected[survivors].astype(np.int64)]
    )
    assert second.positions.tolist() == rows.tolist()


# -- edge cases -------------------------------------------------------------------------------


@pytest.mark.parametrize("selection", ["fill", "union"])
@pytest.mark.parametrize("name", ALL)
def test_keeping_everything_is_the_identity(name: str, selection: str) -> None:
    layout = image_layout((5, 5), (3, 4))
    pruning = Pruning(criterion=name, keep_ratio=(1.0,), selection=selection)

    for after in run(pruning, layout):
        np.testing.assert_array_equal(after.positions, layout.positions)


def test_smallest_ratio_keeps_the_grid_then_one() -> None:
    layout = image_layout((9, 9))

    union, last = run(Pruning(keep_ratio=(1e-6,), selection="union"), layout)

    assert 9 <= union.num_kept <= 10  # the grid and the one best
    assert last.num_kept == 1  # never none, unlike the paper's code


def test_a_budget_below_the_grid_keeps_the_best_of_the_grid() -> None:
    layout = image_layout((9, 9))
    grid = stride_grid(9, 9, 3)

    first, _ = run(Pruning(keep_ratio=(0.05, 0.05)), layout)

    assert first.num_kept == 4
    assert set(first.kept_indices) <= set(grid)


@pytest.mark.parametrize("selection", ["fill", "union"])
def test_no_grid_is_plain_top_k(selection: str) -> None:
    layout = image_layout((6, 6))
    plan = criterion("feather").plan(Pruning(stride=0, selection=selection), 0, 2, layout)
    scores = np.linspace(0, 1, layout.num_rows, dtype=np.float32)

    kept = layout.keep(plan.select(scores, layout))

    assert kept.kept_indices.tolist() == list(range(26, 36))


def test_a_stride_beyond_the_image_is_its_first_corner() -> None:
    layout = image_layout((4, 4))

    first, _ = run(Pruning(stride=100, keep_ratio=(0.2,)), layout)

    assert 0 in first.kept_indices


def test_the_second_stage_protects_no_grid_token() -> None:
    layout = image_layout((9, 9))
    first, _ = run(Pruning(), layout)
    plan = criterion("feather").plan(Pruning(), 1, 2, first)

    assert not plan.priority(first)[first.is_visual].any()
    assert plan.preferred is None


def test_grid_of_an_oblong_image() -> None:
    layout = image_layout((4, 7))

    first, _ = run(Pruning(selection="union", keep_ratio=(0.1,)), layout)

    assert {0, 3, 6, 21, 24, 27} <= set(first.kept_indices)


@pytest.mark.parametrize("selection", ["fill", "union"])
@pytest.mark.parametrize("name", ALL)
def test_several_images_each_keep_their_share(name: str, selection: str) -> None:
    """Text before, between and after stays; a dull image does not starve beside a bright one."""
    layout = image_layout((8, 8), (8, 8), (2, 3))
    pruning = Pruning(criterion=name, keep_ratio=(0.3,), selection=selection)
    bright = np.where(layout.span_of_row == 0, 1.0, 0.0).astype(np.float32)
    for stage in range(2):
        plan = criterion(name).plan(pruning, stage, 2, layout)
        before = layout
        layout = layout.keep(plan.select(bright[: before.num_rows], before))
        text = before.positions[~before.is_visual]
        assert layout.positions[~layout.is_visual].tolist() == text.tolist()
        counts = [len(layout.rows(span)) for span in range(3)]
        assert min(counts[:2]) > 0
        if not (
            name.startswith("ivc") and selection == "union"
        ):  # coordinate tokens depend on the position
            assert counts[0] == counts[1]
        assert counts[2] >= 1


@pytest.mark.parametrize("name", ALL)
def test_text_is_never_pruned(name: str) -> None:
    layout = image_layout((6, 6), before=0)

    for after in run(Pruning(criterion=name, keep_ratio=(0.1,)), layout):
        assert np.count_nonzero(~after.is_visual) == np.count_nonzero(~layout.is_visual)


@pytest.mark.parametrize("name", ALL)
def test_a_ratio_per_stage_is_a_share_of_the_original(name: str) -> None:
    layout = image_layout((10, 10))

    after = run(Pruning(criterion=name, keep_ratio=(0.5, 0.2, 0.1)), layout, num_stages=3)

    assert [a.num_kept for a in after] == [50, 20, 10]


@pytest.mark.parametrize("name", ["fastv", "fastv-full", "ivc", "ivc-value", "uniform", "random"])
def test_one_ratio_prunes_once_outside_feather(name: str) -> None:
    after = run(Pruning(criterion=name, keep_ratio=(0.25,)), image_layout((8, 8)))

    assert [a.num_kept for a in after] == [16, 16]


def test_feather_with_one_ratio_has_two_stages() -> None:
    message = "two stages in the paper, but this bundle has 3; give one keep ratio per stage"
    with pytest.raises(RequestError, match=message):
        criterion("feather").plan(Pruning(), 0, 3, image_layout((8, 8)))


def test_feather_in_a_bundle_of_one_stage_is_its_first() -> None:
    (after,) = run(Pruning(), image_layout((PAPER_SIDE, PAPER_SIDE)), num_stages=1)

    assert after.num_kept == 275


# -- PyramidDrop and IVC-Prune ----------------------------------------------------------------


def test_pyramiddrop_scores_as_fastv_s_own_code() -> None:
    plan = criterion("pyramiddrop").plan(
        Pruning(criterion="pyramiddrop"), 0, 1, image_layout((8, 8))
    )

    assert (plan.score_rotation, plan.score_domain) == ("rotary", "sequence")


@pytest.mark.parametrize("keep_ratio", [(0.5,), (0.5, 0.25, 0.125)])
def test_published_pyramid_of_llava(keep_ratio: tuple[float, ...]) -> None:
    pruning = Pruning(criterion="pyramiddrop", keep_ratio=keep_ratio)

    after = run(pruning, image_layout((24, 24)), num_stages=3)

    assert [a.num_kept for a in after] == [288, 144, 72]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 50))
def test_coordinate_tokens_one_by_one(height: int, width: int, before: int) -> None:
    layout = image_layout((height, width), (3, 5), before=before)
    expected = np.zeros(layout.num_rows, bool)
    for span in layout.spans:
        tenth = max(1, span.num_tokens // 10)
        for turn in (math.cos, math.sin):
            sums = {
                m: np.float32(sum(turn(m * float(theta)) for theta in FREQUENCIES))
                for m in range(span.start, span.start + span.num_tokens)
            }
            expected[sorted(sums, key=lambda m, sums=sums: -sums[m])[:tenth]] = True

    assert coordinate_rows(layout).tolist() == expected.tolist()


def test_coordinate_tokens_are_kept_at_every_stage() -> None:
    layout = image_layout((12, 12))
    coordinates = set(np.flatnonzero(coordinate_rows(layout)))

    assert 14 <= len(coordinates) <= 28
    for after in run(Pruning(criterion="ivc", keep_ratio=(0.5, 0.25)), layout):
        assert coordinates <= set(after.positions)


def test_coordinate_tokens_beyond_the_quota_are_cut_by_score() -> None:
    layout = image_layout((12, 12))
    coordinates = set(np.flatnonzero(coordinate_rows(layout)))

    first, _ = run(Pruning(criterion="ivc", keep_ratio=(0.05,)), layout)

    assert first.num_kept == 7
    assert set(first.positions[first.is_visual]) <= coordinates


def test_ivc_without_angles_says_so() -> None:
    layout = Layout.full(80, [VisualSpan(start=0, height=8, width=8)])
    with pytest.raises(RequestError, match="ivc needs the decoder's rotary angles"):
        criterion("ivc").plan(Pruning(criterion="ivc"), 0, 1, layout)


# -- baselines --------------------------------------------------------------------------------


def test_a_quarter_of_the_tokens_is_the_stride_two_grid() -> None:
    first, _ = run(Pruning(criterion="uniform", keep_ratio=(0.25,)), image_layout((8, 8)))

    assert first.kept_indices.tolist() == stride_grid(8, 8, 2).tolist()


@given(st.integers(1, 20), st.integers(1, 20))
def test_bayer_rank_is_an_order(height: int, width: int) -> None:
    rank = bayer_rank(height, width)

    assert len(set(rank.tolist())) == height * width


@given(st.integers(1, 15), st.integers(1, 99), st.integers(1, 99))
def test_smaller_uniform_sets_nest_in_larger_ones(side: int, a: int, b: int) -> None:
    layout = image_layout((side, side))
    kept = [
        set(run(Pruning(criterion="uniform", keep_ratio=(p / 100,)), layout)[0].kept_indices)
        for p in sorted((a, b))
    ]

    assert kept[0] <= kept[1]


def test_uniform_is_spread_over_the_picture() -> None:
    layout = image_layout((16, 16))
    first, _ = run(Pruning(criterion="uniform", keep_ratio=(0.1,)), layout)
    y, x = np.divmod(first.kept_indices, 16)

    quarters = np.bincount(2 * (y >= 8) + (x >= 8), minlength=4)
    assert quarters.max() - quarters.min() <= 1


def test_random_repeats_with_its_seed_only() -> None:
    layout = image_layout((10, 10))

    def kept(seed: int) -> list[int]:
        pruning = Pruning(criterion="random", seed=seed)
        return run(pruning, layout, seed=seed)[0].kept_indices.tolist()

    assert kept(1) == kept(1)
    assert kept(1) != kept(2)


def test_random_ignores_the_scores() -> None:
    layout = image_layout((10, 10))
    pruning = Pruning(criterion="random")

    assert (
        run(pruning, layout, seed=1)[1].positions.tolist()
        == run(pruning, layout, seed=2)[1].positions.tolist()
    )
