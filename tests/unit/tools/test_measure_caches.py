"""The tool that holds caches in place against grown ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from support.bundles import BundleFactory


def test_both_forms_run_the_same_parts_and_are_compared(bundles: BundleFactory) -> None:
    import measure_caches

    bundle = bundles(num_layers=4, image_size=56, recipe=ExportRecipe(stages=(1, 3))).bundle
    taken = measure_caches.measure(bundle, num_threads=1, num_rows=12, num_rounds=2)

    assert {key: len(seconds) for key, seconds in taken.items()} == {
        ("prefill", "grown"): 2,
        ("prefill", "in place"): 2,
        ("decode step", "grown"): 2 * measure_caches.NUM_STEPS,
        ("decode step", "in place"): 2 * measure_caches.NUM_STEPS,
    }


def test_what_is_told_is_the_least_of_cpu_times_and_the_median_by_clock() -> None:
    import measure_caches

    taken = {
        ("prefill", "grown"): [(0.4, 1.0), (0.2, 1.0), (0.9, 1.0)],
        ("prefill", "in place"): [(0.1, 3.0), (0.5, 1.2), (0.5, 0.5)],
        ("decode step", "grown"): [(0.001, 1.0)],
        ("decode step", "in place"): [(0.002, 1.0)],
    }
    assert measure_caches.report(taken) == (
        "prefill 0.50 by CPU (1.20 by clock) of   200.00 ms; "
        "decode step 2.00 by CPU (1.00 by clock) of     1.00 ms"
    )


def test_the_forms_are_not_the_same_graph(bundles: BundleFactory) -> None:
    import measure_caches

    bundle = bundles(num_layers=4, image_size=56, recipe=ExportRecipe(stages=(1, 3))).bundle
    grown, in_place = measure_caches.opened(bundle, num_threads=1).values()
    assert not grown.has_caches_in_place
    assert in_place.has_caches_in_place
