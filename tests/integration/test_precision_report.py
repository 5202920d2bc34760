"""What a precision costs: logits after the same words, answers, and the perplexity of a text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from support.shipped import CHECKPOINT
from tokenizers import Tokenizer

from feather_edge.cli import main
from feather_edge.errors import RequestError
from feather_edge.evaluate.logit_tap import LogitTap
from feather_edge.evaluate.precision_report import report_precision
from feather_edge.evaluate.tasks import load_task
from feather_edge.evaluate.text_prediction import TextPrediction, predict_text
from feather_edge.pruning import Layout
from feather_edge.recipes import ExportRecipe, load_recipe, override
from feather_edge.runtime.decoder import DecoderChain
from feather_edge.runtime.embeddings import Embeddings

if TYPE_CHECKING:
    from pathlib import Path

    from support.bundles import BundleFactory

    from feather_edge.bundle import Bundle

TEXT = "where is the red circle? the blue square is left of the large green star."


def shipped(bundles: BundleFactory, precision: Any) -> Bundle:
    recipe = override(load_recipe("scene-vlm"), precision=precision)
    return bundles.export(CHECKPOINT, recipe=recipe).bundle


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT * 20, encoding="utf-8")
    return tmp_path / "text.txt"


def test_a_bundle_does_not_differ_from_itself(bundles: BundleFactory, text: Path) -> None:
    bundle = shipped(bundles, "fp32")
    report = report_precision(bundle, bundle, task=load_task("scenes", limit=1), text=text)
    assert report.logits is not None
    assert report.answers is not None
    assert report.text is not None
    assert report.logits.lowest_cosine == pytest.approx(1)
    assert report.logits.next_token_agreement == 1
    assert report.logits.num_positions > report.answers.num_questions > 3
    assert (report.answers.agreement, report.answers.relative_loss) == (1, 0)
    assert report.answers.accuracy == report.answers.reference_accuracy > 0.5
    assert (report.text.next_token_agreement, report.text.relative_loss) == (1, 0)
    assert report.weight_bytes == report.reference_weight_bytes
    assert report.precision == "fp32, vision fp32, head float"


def test_a_precision_is_measured(bundles: BundleFactory, text: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = report_precision(
        shipped(bundles, "int4"),
        shipped(bundles, "fp32"),
        task=load_task("scenes", limit=1),
        text=text,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert report.logits is not None
    assert report.text is not None
    assert 0.9 < report.logits.lowest_cosine <= report.logits.mean_cosine < 0.99999
    assert 0.9 < report.text.mean_cosine < 0.99999
    assert report.text.relative_loss != 0
    assert report.weight_bytes < 0.25 * report.reference_weight_bytes
    assert report.precision == ("int4 (blocks of 32), vision int8, head int8, activations fp32")
    assert seen == [(0, 1), (1, 1)]


def test_a_backend_is_measured_against_onnxruntime(bundles: BundleFactory, text: Path) -> None:
    """The same codes: what differs is how OpenVINO computes with them."""
    int8, fp32 = shipped(bundles, "int8"), shipped(bundles, "fp32")
    task = load_task("scenes", limit=1)
    same = report_precision(fp32, fp32, task=task, text=text, backend="openvino")
    ours, theirs = (
        report_precision(int8, fp32, task=task, text=text, backend=name)
        for name in ("openvino", "onnxruntime")
    )
    assert (same.backend, ours.backend, theirs.backend) == ("openvino", "openvino", "onnxruntime")
    for report, lowest in ((same, 1 - 1e-6), (ours, 0.99), (theirs, 0.99)):
        assert report.logits is not None
        assert report.text is not None
        assert report.logits.lowest_cosine >= lowest
        assert report.text.mean_cosine >= lowest
    assert ours.text != theirs.text


def test_engines_are_not_measured(bundles: BundleFactory) -> None:
    bundle = shipped(bundles, "fp32")
    with pytest.raises(RequestError, match="graphs, and backend tensorrt runs engines; choose on"):
        report_precision(bundle, bundle, task=load_task("scenes", limit=1), backend="tensorrt")


def test_losses_are_the_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((5, 7)) * 20).astype(np.float32)
    following = np.array([0, 1, 2, 3, 6])
    shares = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(1)[:, None]
    prediction = TextPrediction(logits=logits, following=following)
    np.testing.assert_allclose(prediction.losses, -np.log(shares[np.arange(5), following]))
    np.testing.assert_array_equal(prediction.likeliest, logits.argmax(1))
    np.testing.assert_allclose(prediction.cosine_to(prediction), 1)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_all_positions_are_what_single_steps_give(
    bundles: BundleFactory, text: Path, precision: Any, is_tied: bool, backend: str
) -> None:
    recipe = ExportRecipe(precision=precision, stages=(1,))
    bundle = bundles(num_layers=2, tie_word_embeddings=is_tied, recipe=recipe).bundle
    prediction = next(predict_text(bundle, text, backend=backend))
    tap = LogitTap(backend)
    graphs = [tap.open(bundle.path / spec.file, spec) for spec in bundle.decoders]
    chain = DecoderChain(graphs, bundle.manifest, bundle.schedule, tap, max_new_tokens=7)
    embeddings = Embeddings.open(bundle)
    tokenizer: Any = Tokenizer.from_file(str(bundle.path / "tokenizer.json"))
    first, *rest = tokenizer.encode(TEXT, add_special_tokens=False).ids[:7]
    assert prediction.following[:6].tolist() == rest
    steps = [chain.prefill(embeddings[np.array([first])], Layout.full(1, []), None)[0]]
    steps += [chain.decode_step(embeddings[token]) for token in rest]
    # Rows are quantised apart from each other, so rounding differs by an int8 step here and there.
    tolerance = 2e-4 if precision == "fp32" else 0.1
    np.testing.assert_allclose(prediction.logits[:7], np.stack(steps), rtol=0, atol=tolerance)


def test_windows_cover_the_text(bundles: BundleFactory, text: Path) -> None:
    windows = list(predict_text(shipped(bundles, "fp32"), text))
    assert len(windows) > 1
    assert {len(window.following) for window in windows[:-1]} == {255}
    assert all(len(window.logits) == len(window.following) for window in windows)


def test_bundles_of_different_models_are_refused(bundles: BundleFactory, tmp_path: Path) -> None:
    other = bundles(num_layers=4).bundle
    with pytest.raises(RequestError, match="are of different checkpoints: source is"):
        report_precision(shipped(bundles, "fp32"), other, task=load_task("scenes", limit=1))
    elsewhere = bundles.export(CHECKPOINT, recipe=ExportRecipe(stages=(2,))).bundle
    with pytest.raises(RequestError, match=r"different layers, \[4, 6\] and \[2\]"):
        report_precision(shipped(bundles, "fp32"), elsewhere, task=load_task("scenes", limit=1))


def test_what_cannot_be_measured_is_refused(bundles: BundleFactory, tmp_path: Path) -> None:
    bundle = shipped(bundles, "fp32")
    with pytest.raises(RequestError, match="nothing to compare; give a task, a text, or both"):
        report_precision(bundle, bundle, task=None)
    (tmp_path / "short").write_text("")
    with pytest.raises(RequestError, match="short has 0 tokens; at least 2 are needed"):
        report_precision(bundle, bundle, task=None, text=tmp_path / "short")
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(RequestError, match="bytes cannot be read: .* give a text in UTF-8"):
        report_precision(bundle, bundle, task=None, text=tmp_path / "bytes")


def test_the_command(bundles: BundleFactory, text: Path) -> None:
    line = ["verify", str(shipped(bundles, "int8").path), "--precision-report"]
    line += [str(shipped(bundles, "fp32").path), "--limit", "1", "--text", str(text)]
    shown = CliRunner().invoke(main, line)
    assert shown.exit_code == 0, shown.output
    for word in ("int8 (blocks of 32)", "next token agrees", "perplexity", "relative loss"):
        assert word in shown.stdout
    document = json.loads(CliRunner().invoke(main, [*line, "--json"]).stdout)
    assert set(document) == {
        "bundle", "reference", "backend", "precision", "reference_precision", "weight_bytes",
        "reference_weight_bytes", "logits", "answers", "text",
    }  # fmt: skip
    assert document["answers"]["task"] == "scenes"


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        (["--files", "--layers"], "--layers has no effect on --files"),
        (["--files", "--limit", "1"], "--limit has no effect on --files"),
        (
            ["--precision-report", "B", "--no-receipt"],
            "--receipt has no effect on --precision",
        ),
        (["--text", "T"], "--text has no effect without --precision-report"),
    ],
)
def test_an_option_typed_in_vain_is_an_error(line: list[str], flag: str) -> None:
    result = CliRunner().invoke(main, ["verify", "B", *line])
    assert result.exit_code == 2
    assert flag in result.stderr
