"""Criteria before the decoder, each against a slow and obvious reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feather_edge.errors import RequestError
from feather_edge.pruning import Layout, Pruning, PruningSchedule, VisualSpan
from feather_edge.pruning.forecast import forecast
from feather_edge.pruning.pre_criteria import PRE_CRITERIA, require_pre_criterion
from feather_edge.pruning.pre_criteria.pooling import pooled_size, pooling
from feather_edge.pruning.pre_criteria.tokens import ImageTokens
from feather_edge.pruning.pre_decoder import pre_plan, pre_quotas, prune_before_decoder
from feather_edge.pruning.selection import stride_grid, top_k


def image_tokens(
    num_tokens: int, *, width: int = 8, num_text: int = 5, seed: int = 0
) -> ImageTokens:
    rng = np.random.default_rng(seed)
    return ImageTokens(
        features=rng.normal(size=(num_tokens, width)).astype(np.float32),
        raster=np.arange(num_tokens),
        height=num_tokens,
        width=1,
        text=rng.normal(size=(num_text, width)).astype(np.float32),
        seed=(seed, 0),
    )


def kept(name: str, tokens: ImageTokens, count: int) -> list[int]:
    return top_k(PRE_CRITERIA[name](tokens, count), count).tolist()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(float), b.astype(float)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def reference_divprune(features: np.ndarray, count: int) -> list[int]:
    """Greedy max-min, every distance computed when it is needed."""
    everyone = range(len(features))

    def distance(i: int, j: int) -> float:
        return 1 - cosine(features[i], features[j])

    chosen = [max(everyone, key=lambda i: min(distance(i, j) for j in everyone if j != i))]
    while len(chosen) < count:
        left = [i for i in everyone if i not in chosen]
        chosen.append(max(left, key=lambda i: min(distance(i, j) for j in chosen)))
    return sorted(chosen)


def reference_dart(features: np.ndarray, text: np.ndarray, count: int) -> list[int]:
    """Pivots one after another, each takes the least similar token that is left."""

    def strongest(rows: np.ndarray, number: int) -> list[int]:
        return sorted(sorted(range(len(rows)), key=lambda i: -np.abs(rows[i]).sum())[:number])

    chosen = strongest(features, min(4, count))
    pivots = [features[i] for i in chosen] + [text[i] for i in strongest(text, 4)]
    bounds = [(count - len(chosen)) * i // len(pivots) for i in range(len(pivots) + 1)]
    for pivot, start, end in zip(pivots, bounds, bounds[1:], strict=False):
        for _ in range(end - start):
            left = [i for i in range(len(features)) if i not in chosen]
            chosen.append(min(left, key=lambda i, pivot=pivot: cosine(features[i], pivot)))
    return sorted(chosen)


def reference_cdpruner(features: np.ndarray, text: np.ndarray, count: int) -> list[int]:
    """Greedy MAP by the determinants themselves."""
    relevance = np.array([np.mean([cosine(f, t) for t in text]) for f in features])
    relevance = (relevance - relevance.min()) / (relevance.max() - relevance.min())
    kernel = np.array(
        [
            [
                relevance[i] * cosine(features[i], features[j]) * relevance[j]
                for j in range(len(features))
            ]
            for i in range(len(features))
        ]
    )
    chosen: list[int] = []
    while len(chosen) < count:
        left = [i for i in range(len(features)) if i not in chosen]
        chosen.append(
            max(left, key=lambda i: np.linalg.det(kernel[np.ix_([*chosen, i], [*chosen, i])]))
        )
    return sorted(chosen)


@given(st.integers(2, 24), st.data(), st.integers(0, 999))
def test_divprune_is_the_reference(num_tokens: int, data: st.DataObject, seed: int) -> None:
    count = data.draw(st.integers(1, num_tokens))
    tokens = image_tokens(num_tokens, seed=seed)

    assert kept("divprune", tokens, count) == reference_divprune(tokens.features, count)


def test_divprune_drops_duplicates_first() -> None:
    tokens = image_tokens(6)
    features = np.concatenate([tokens.features, 2 * tokens.features])
    doubled = ImageTokens(
        features=features, raster=np.arange(12), height=12, width=1, text=tokens.text, seed=(0,)
    )

    assert sorted(i % 6 for i in kept("divprune", doubled, 6)) == list(range(6))


@given(st.integers(2, 24), st.integers(1, 6), st.data(), st.integers(0, 999))
def test_dart_is_the_reference(
    num_tokens: int, num_text: int, data: st.DataObject, seed: int
) -> None:
    count = data.draw(st.integers(1, num_tokens))
    tokens = image_tokens(num_tokens, num_text=num_text, seed=seed)

    assert kept("dart", tokens, count) == reference_dart(tokens.features, tokens.text, count)


def test_dart_keeps_the_visual_pivots() -> None:
    tokens = image_tokens(40)
    tokens.features[[3, 17, 22, 39]] *= 50

    assert {3, 17, 22, 39} <= set(kept("dart", tokens, 12))


@given(st.integers(2, 12), st.data(), st.integers(0, 999))
def test_cdpruner_is_the_reference(num_tokens: int, data: st.DataObject, seed: int) -> None:
    count = data.draw(st.integers(1, num_tokens - 1))  # the least relevant adds no volume
    tokens = image_tokens(num_tokens, width=16, seed=seed)

    expected = reference_cdpruner(tokens.features, tokens.text, count)
    assert kept("cdpruner", tokens, count) == expected


def test_cdpruner_takes_the_most_relevant_first() -> None:
    tokens = image_tokens(30)
    tokens.features[7] = tokens.text.mean(axis=0)

    assert kept("cdpruner", tokens, 1) == [7]


def test_cdpruner_beyond_the_width_of_the_features() -> None:
    """Three directions hold three tokens' volume; the rest goes by relevance."""
    tokens = image_tokens(20, width=3)
    relevance = [np.mean([cosine(f, t) for t in tokens.text]) for f in tokens.features]
    first = set(kept("cdpruner", tokens, 3))
    rest = [i for i in np.argsort(relevance)[::-1] if i not in first]

    assert set(kept("cdpruner", tokens, 8)) == first | set(rest[:5])


@pytest.mark.parametrize("name", ["divprune", "dart", "cdpruner"])
def test_features_that_are_all_alike(name: str) -> None:
    tokens = image_tokens(9)
    tokens.features[:] = 0

    assert len(set(kept(name, tokens, 4))) == 4


# -- pooling ----------------------------------------------------------------------------------


def raster_tokens(height: int, width: int, *, absent: set[int] | None = None) -> ImageTokens:
    raster = np.array([place for place in range(height * width) if place not in (absent or ())])
    features = np.random.default_rng(height * width).normal(size=(height * width, 5))
    return ImageTokens(
        features=features.astype(np.float32)[raster], raster=raster, height=height, width=width,
        text=np.zeros((0, 5), np.float32), seed=(0,),
    )  # fmt: skip


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.01, 1))
def test_pooling_is_torch_s_adaptive_pooling(height: int, width: int, ratio: float) -> None:
    import torch

    tokens = raster_tokens(height, width)
    size = pooled_size(height, width, ratio)

    merged = pooling(tokens, ratio)

    grid = torch.from_numpy(tokens.features).reshape(1, height, width, 5).permute(0, 3, 1, 2)
    expected = torch.nn.functional.adaptive_avg_pool2d(grid, size)[0].flatten(1).T.numpy()
    np.testing.assert_allclose(merged.features, expected, atol=1e-5)
    assert len(set(merged.representatives.tolist())) == size[0] * size[1]
    for cell, token in enumerate(merged.representatives.tolist()):
        (row, column), (y, x) = divmod(cell, size[1]), divmod(token, width)
        assert abs(y + 0.5 - (row + 0.5) * height / size[0]) <= 1
        assert abs(x + 0.5 - (column + 0.5) * width / size[1]) <= 1


@given(st.integers(1, 7), st.integers(1, 7), st.floats(0.05, 1), st.sets(st.integers(0, 48)))
def test_pooling_averages_what_is_there(
    height: int, width: int, ratio: float, absent: set[int]
) -> None:
    if len(absent & set(range(height * width))) == height * width:
        return
    tokens = raster_tokens(height, width, absent=absent)
    rows, columns = pooled_size(height, width, ratio)
    whole = dict(zip(tokens.raster.tolist(), tokens.features, strict=True))

    merged = pooling(tokens, ratio)

    averages, taken = [], set()
    for row in range(rows):
        for column in range(columns):
            members = [
                y * width + x
                for y in range(row * height // rows, -(-(row + 1) * height // rows))
                for x in range(column * width // columns, -(-(column + 1) * width // columns))
                if y * width + x in whole
            ]
            free = [place for place in members if place not in taken]
            if free:
                middle = np.mean([divmod(place, width) for place in members], axis=0)
                taken.add(
                    min(free, key=lambda p, m=middle: np.sum((np.divmod(p, width) - m) ** 2))
                )
                averages.append(np.mean([whole[place] for place in members], axis=0))
    assert {int(tokens.raster[i]) for i in merged.representatives} == taken
    np.testing.assert_allclose(merged.features, averages, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "ratio", "expected"),
    [
        ((27, 27), 0.5, (19, 19)),
        ((24, 24), 1.0, (24, 24)),
        ((14, 14), 0.25, (7, 7)),
        ((1, 40), 0.1, (1, 4)),
        ((40, 1), 0.1, (4, 1)),
        ((5, 5), 0.001, (1, 1)),
    ],
)
def test_cells_are_about_as_wide_as_high(
    size: tuple[int, int], ratio: float, expected: tuple[int, int]
) -> None:
    assert pooled_size(*size, ratio) == expected


def test_merged_tokens_enter_at_the_places_of_their_representatives() -> None:
    layout, embeds = two_images()
    pruning = Pruning(pre_criterion="pooling", pre_keep_ratio=0.25)

    entered = prune_before_decoder(pruning, layout, embeds)

    pruned = layout.keep(entered.rows)
    assert entered.is_merged
    assert entered.embeds.dtype == embeds.dtype
    assert (
        [len(pruned.rows(span)) for span in range(2)] == [9, 4] == [*pre_quotas(pruning, layout)]
    )
    first = embeds[2:38].reshape(6, 6, 8)[:2, :2].reshape(4, 8).astype(np.float32).mean(axis=0)
    np.testing.assert_allclose(entered.embeds[2], first, atol=1e-3)
    is_text = ~pruned.is_visual
    assert np.array_equal(entered.embeds[is_text], embeds[~layout.is_visual])
    schedule = PruningSchedule(num_layers=8, stages=(2, 4))
    assert forecast(pruning, schedule, layout)[0] == 13


def test_pooling_leaves_protected_tokens_alone_and_does_not_see_forbidden_ones() -> None:
    layout, embeds = two_images()
    protected, forbidden = np.zeros(60, bool), np.zeros(60, bool)
    protected[[2, 9]], forbidden[3:8] = True, True
    layout = layout.with_regions(protected=protected, forbidden=forbidden)
    other = embeds.copy()
    other[3:8] = 7.0
    pruning = Pruning(pre_criterion="pooling", pre_keep_ratio=0.25)

    entered, same = (prune_before_decoder(pruning, layout, each) for each in (embeds, other))

    assert np.array_equal(entered.rows, same.rows)
    assert np.array_equal(entered.embeds, same.embeds)
    assert {2, 9} <= set(entered.rows) <= set(range(60)) - set(range(3, 8))
    assert np.array_equal(entered.embeds[np.isin(entered.rows, [2, 9])], embeds[[2, 9]])
    assert layout.keep(entered.rows).num_kept == 9 + 4 + 2


# -- the stage --------------------------------------------------------------------------------


def two_images() -> tuple[Layout, np.ndarray]:
    spans = [VisualSpan(start=2, height=6, width=6), VisualSpan(start=40, height=3, width=5)]
    layout = Layout.full(60, spans)
    return layout, np.random.default_rng(0).normal(size=(60, 8)).astype(np.float16)


@pytest.mark.parametrize("name", PRE_CRITERIA)
@pytest.mark.parametrize("ratio", [0.001, 0.3, 0.5, 1.0])
def test_each_image_keeps_its_rounded_share_in_place(name: str, ratio: float) -> None:
    layout, embeds = two_images()
    pruning = Pruning(pre_criterion=name, pre_keep_ratio=ratio)

    pruned = layout.keep(
        pre_plan(pruning, layout, embeds).select(np.zeros(layout.num_rows), layout)
    )

    counts = [len(pruned.rows(span)) for span in range(2)]
    assert counts == [max(1, round(ratio * 36)), max(1, round(ratio * 15))]
    assert np.all(np.diff(pruned.positions) > 0)
    assert pruned.num_positions == 60
    assert np.count_nonzero(~pruned.is_visual) == 60 - 36 - 15
    schedule = PruningSchedule(num_layers=8, stages=(2, 4))
    assert forecast(pruning, schedule, layout)[0] == sum(counts)


@pytest.mark.parametrize("name", PRE_CRITERIA)
def test_forbidden_tokens_are_not_even_seen(name: str) -> None:
    layout, embeds = two_images()
    forbidden = np.zeros(60, bool)
    forbidden[2:20] = True
    layout = layout.with_regions(protected=np.zeros(60, bool), forbidden=forbidden)
    other = embeds.copy()
    other[2:20] = 7.0
    pruning = Pruning(pre_criterion=name, pre_keep_ratio=0.25)

    rows, same = (
        pre_plan(pruning, layout, e).select(np.zeros(60), layout).tolist() for e in (embeds, other)
    )

    assert rows == same
    assert not set(rows) & set(range(2, 20))
    assert layout.keep(np.array(rows)).num_kept == 9 + 4


def test_uniform_before_the_decoder_is_the_stride_two_grid() -> None:
    layout = Layout.full(70, [VisualSpan(start=3, height=8, width=8)])
    pruning = Pruning(pre_criterion="uniform", pre_keep_ratio=0.25)

    plan = pre_plan(pruning, layout, np.zeros((70, 2), np.float32))

    rows = plan.select(np.zeros(70), layout)
    assert layout.keep(rows).kept_indices.tolist() == stride_grid(8, 8, 2).tolist()


def test_random_repeats_with_its_seed_only() -> None:
    tokens, same, other = (image_tokens(30, seed=seed) for seed in (1, 1, 2))

    assert kept("random", tokens, 9) == kept("random", same, 9) != kept("random", other, 9)


@pytest.mark.parametrize("name", ["None", "pool", "fastv"])
def test_unknown_criterion_before_the_decoder(name: str) -> None:
    message = f"criterion before the decoder '{name}' is unknown; choose uniform, random, divprune"
    with pytest.raises(RequestError, match=message):
        require_pre_criterion(name)
