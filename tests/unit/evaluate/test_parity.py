"""Numbers that say how far two runs of a graph are apart."""

from __future__ import annotations

import numpy as np
import pytest

from feather_edge.errors import ParityError
from feather_edge.evaluate.parity import Difference, compare, count_equal, is_top_k, overlap
from feather_edge.evaluate.parity_report import (
    AnswerReport,
    KeptReport,
    TensorReport,
    VerifyReport,
    worst_samples,
)
from feather_edge.runtime.receipt import Subject


def test_equal_tensors() -> None:
    x = np.arange(6, dtype=np.float16).reshape(2, 3)
    assert compare(x, x) == Difference(
        cosine=pytest.approx(1.0), max_abs=0.0, num_not_finite=0, reference_num_not_finite=0
    )


@pytest.mark.parametrize(
    ("found", "reference", "cosine", "max_abs"),
    [
        ([1.0, 0.0], [0.0, 1.0], 0.0, 1.0),
        ([1.0, 2.0], [-1.0, -2.0], -1.0, 4.0),
        ([0.0, 0.0], [0.0, 0.0], 1.0, 0.0),
        ([0.0, 0.0], [1.0, 0.0], 0.0, 1.0),
        ([], [], 1.0, 0.0),
        ([3.0, np.nan, np.inf], [3.0, 1.0, -np.inf], 1.0, 0.0),
    ],
)
def test_differences(
    found: list[float], reference: list[float], cosine: float, max_abs: float
) -> None:
    difference = compare(np.array(found, np.float32), np.array(reference, np.float32))
    assert difference.cosine == pytest.approx(cosine)
    assert difference.max_abs == max_abs
    assert difference.num_not_finite == np.count_nonzero(~np.isfinite(found))


def test_what_is_bad() -> None:
    good = {"cosine": 1.0, "max_abs": 0.0, "num_not_finite": 0, "reference_num_not_finite": 0}
    assert not Difference(**good).is_bad(0.99)
    for change in ({"cosine": 0.98}, {"num_not_finite": 1}, {"reference_num_not_finite": 1}):
        assert Difference(**{**good, **change}).is_bad(0.99)


def test_overlap() -> None:
    assert overlap(np.array([1, 2, 5, 9]), np.array([2, 3, 5, 8])) == 0.5
    assert overlap(np.array([], np.int64), np.array([], np.int64)) == 0.0


def test_top_k_of_its_own_scores() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.5], np.float32)
    text_first = np.array([1e4, 0, 0, 0], np.float32)
    for kept, expected in (
        ([0, 1], True), ([1, 0], False), ([0, 2], False), ([1, 2], False),
        ([0, 1, 2], True), ([0, 1, 3], True), ([0, 1, 2, 3], True), ([0, 0, 1], False),
    ):  # fmt: skip
        assert is_top_k(np.array(kept), scores, text_first) is expected, kept


@pytest.mark.parametrize(
    ("found", "reference", "count"),
    [((1, 2, 3), (1, 2, 3), 3), ((1, 2), (1, 2, 3), 2), ((2, 1), (1, 2), 0), ((), (1,), 0)],
)
def test_equal_tokens(found: tuple[int, ...], reference: tuple[int, ...], count: int) -> None:
    assert count_equal(found, reference) == count


# The verdict


def tensor(name: str = "logits", **changes: object) -> TensorReport:
    fields = {
        "graph": "decoder_1", "phase": "prefill", "tensor": name, "sample": "00.png",
        "cosine": 1.0, "max_abs": 0.0, "num_not_finite": 0, "reference_num_not_finite": 0,
    }  # fmt: skip
    return TensorReport(**{**fields, **changes})  # type: ignore[arg-type]


SUBJECT = Subject(
    bundle="0" * 64, engines=None, feather_edge="0.1.0", backend="tensorrt", target="orin",
    library=None,
)  # fmt: skip


def report(**changes: object) -> VerifyReport:
    fields = {
        "bundle": "b", "tested": "tensorrt", "reference": "onnxruntime with opset 23",
        "lowest_cosine": 0.99, "lowest_overlap": 0.9, "tensors": (), "kept": (), "answers": (),
        "first_bad": None, "subject": SUBJECT, "form": None, "versions": {},
    }  # fmt: skip
    return VerifyReport(**{**fields, **changes})  # type: ignore[arg-type]


def verdict(**changes: object) -> str:
    with pytest.raises(ParityError) as error:
        report(**changes).check()
    return str(error.value)


def test_agreement_is_silent() -> None:
    kept = KeptReport(graph="decoder_0", sample="00.png", overlap=0.9, is_top_k=True)
    report(kept=(kept,)).check()


def test_a_low_cosine_is_refused() -> None:
    assert verdict(first_bad=tensor(cosine=0.5, max_abs=3.25)) == (
        "tensorrt differs from onnxruntime with opset 23: logits of decoder_1 (prefill, 00.png) "
        "is the first with a cosine below 0.99: 0.500000, largest difference 3.25; find the "
        "layer with --layers"
    )


def test_values_that_are_not_finite_are_refused() -> None:
    bad = tensor(num_not_finite=7, first_not_finite="inf at [0, 3]")
    assert verdict(first_bad=bad) == (
        "tensorrt differs from onnxruntime with opset 23: logits of decoder_1 (prefill, 00.png) "
        "is the first with values that are not finite: 7, in the reference 0, first inf at "
        "[0, 3]; with fp16 this is an overflow, export with --precision fp32"
    )


def test_other_rows_are_refused() -> None:
    kept = KeptReport(graph="decoder_0", sample="00.png", overlap=0.5, is_top_k=True)
    assert "decoder_0 (00.png) keeps 50.0% of the reference's rows, less than 90.0%" in verdict(
        kept=(kept,)
    )
    kept = KeptReport(graph="decoder_0", sample="00.png", overlap=1.0, is_top_k=False)
    assert "does not keep the best rows by its own scores" in verdict(kept=(kept,))


def test_a_missing_answer_is_refused() -> None:
    answer = AnswerReport(sample="00.png", failure="logits are not finite")
    assert verdict(answers=(answer,)).endswith("no answer to 00.png: logits are not finite")


def test_the_worst_sample_stands_for_all() -> None:
    tensors = (
        tensor("scores", cosine=0.999), tensor("logits"), tensor("scores", cosine=0.9, sample="b"),
        tensor("logits", num_not_finite=1, sample="c"),
    )  # fmt: skip
    worst = worst_samples(tensors)
    assert [(each.tensor, each.sample) for each in worst] == [("scores", "b"), ("logits", "c")]
    assert [each.tensor for each in report(tensors=worst).worst_of_each_graph] == ["logits"]
