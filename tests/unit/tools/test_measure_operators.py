"""The tool that says where OpenVINO's time goes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from support.bundles import BundleFactory


def test_operators_take_less_than_the_clock(bundles: BundleFactory) -> None:
    pytest.importorskip("openvino")
    import measure_operators

    recipe = ExportRecipe(stages=(2,), precision="int8")
    bundle = bundles(num_layers=4, image_size=56, recipe=recipe).bundle
    backend = measure_operators.ProfiledBackend(num_threads=1)
    parts = measure_operators.measure(bundle, backend, num_rows=300, num_steps=4)

    assert list(parts) == ["prefill", "decode step"]
    for part in parts.values():
        assert 0 < sum(part.operators_ms.values()) < part.wall_ms
        assert any(kind in measure_operators.PRODUCTS for kind, _ in part.operators_ms)


def test_a_graphs_time_is_the_mean_times_its_runs() -> None:
    import measure_operators

    def operator(kind: str, kernel: str, seconds: float) -> SimpleNamespace:
        real_time = SimpleNamespace(total_seconds=lambda: seconds)
        return SimpleNamespace(node_type=kind, exec_type=kernel, real_time=real_time)

    told = [operator("A", "x", 0.001), operator("A", "x", 0.002), operator("A", "y", 0.004)]
    opened = SimpleNamespace(
        spec=None,
        limits=None,
        request=SimpleNamespace(profiling_info=told),
        run=lambda inputs: inputs,
    )
    graph = measure_operators.ProfiledGraph(opened)
    assert not graph.taken_ms()
    for _ in range(3):
        graph.run({})
    assert graph.taken_ms() == pytest.approx({("A", "x"): 9.0, ("A", "y"): 12.0})


def test_the_report_names_the_largest_first_and_the_rate_of_the_weights() -> None:
    import measure_operators

    step = measure_operators.Part(
        operators_ms={
            ("Add", "jit"): 2.0,
            (measure_operators.PRODUCTS[1], "brgemm"): 12.0,
            (measure_operators.PRODUCTS[0], "mlas"): 6.0,
            ("Shape", "ref"): 0.001,
        },
        wall_ms=25.0,
    )
    first, *rows = measure_operators.report("decode step", step).splitlines()
    assert (
        first == "decode step: 25.00 ms by the clock while times are taken, 20.00 ms in operators"
    )
    assert [row.split()[-2:] for row in rows] == [
        [measure_operators.PRODUCTS[1], "brgemm"],
        [measure_operators.PRODUCTS[0], "mlas"],
        ["Add", "jit"],
    ]
    assert measure_operators.weights_report(540_000_000, step, 50e9) == (
        "weights: 540 MB a step, read by products at 30.0 GB/s; "
        "copying as many, read and written: 50.0 GB/s"
    )
