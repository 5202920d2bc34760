"""What a precision costs in quality: a bundle against another one of the same checkpoint.

Three views. *Logits*: both models read the same text, the reference's own answers, so one token
that differs does not make all that follow differ. *Answers*: each on its own, and how many of them
are right. *Text*: how well each predicts a running text, every position of a prefill.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from feather_edge.errors import BundleError, RequestError
from feather_edge.evaluate.answers import MIN_IOU, BoxReader
from feather_edge.evaluate.evaluation import score_answer
from feather_edge.evaluate.logit_tap import LogitTap
from feather_edge.evaluate.parity import compare
from feather_edge.evaluate.text_prediction import predict_text
from feather_edge.images import load_image
from feather_edge.recipes.precision import activations, head_precision, vision_precision
from feather_edge.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from feather_edge.bundle import Bundle
    from feather_edge.evaluate.tasks import Sample, Task
    from feather_edge.recipes import ExportRecipe

__all__ = [
    "AnswersReport",
    "LogitsReport",
    "PrecisionReport",
    "TextReport",
    "describe_precision",
    "report_precision",
]


class LogitsReport(msgspec.Struct, frozen=True, kw_only=True):
    """Logits of both models after the same words.

    ``next_token_agreement`` is the share of positions where both find the same token likeliest.
    """

    num_positions: int
    mean_cosine: float
    lowest_cosine: float
    next_token_agreement: float


class AnswersReport(msgspec.Struct, frozen=True, kw_only=True):
    """Answers to the questions of a task; accuracies where all of them can be judged."""

    task: str
    num_questions: int
    agreement: float
    accuracy: float | None
    reference_accuracy: float | None

    @property
    def relative_loss(self) -> float | None:
        """Of accuracy; negative where it grew."""
        if self.accuracy is None or not self.reference_accuracy:
            return None
        return 1 - self.accuracy / self.reference_accuracy


class TextReport(msgspec.Struct, frozen=True, kw_only=True):
    """How well a text is predicted."""

    file: str
    num_positions: int
    perplexity: float
    reference_perplexity: float
    mean_cosine: float
    next_token_agreement: float

    @property
    def relative_loss(self) -> float:
        """Of perplexity; negative where it fell."""
        return self.perplexity / self.reference_perplexity - 1


class PrecisionReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything ``feather-edge verify --precision-report`` prints."""

    bundle: str
    reference: str
    backend: str
    precision: str
    reference_precision: str
    weight_bytes: int
    reference_weight_bytes: int
    logits: LogitsReport | None
    answers: AnswersReport | None
    text: TextReport | None


def report_precision(
    bundle: Bundle,
    reference: Bundle,
    *,
    task: Task | None,
    text: Path | None = None,
    backend: str = "onnxruntime",
    on_progress: Callable[[int, int], None] | None = None,
) -> PrecisionReport:
    """Compare two bundles of one checkpoint, or one of them with itself on another backend.

    Args:
        bundle: in the precision in question.
        reference: usually in fp32; ONNX Runtime runs it.
        task: questions about pictures; None leaves logits and answers out.
        text: a file to predict; None leaves it out.
        backend: that runs ``bundle``, see ``LogitTap``; it may round on its own.
        on_progress: called before the first and after every picture.

    Raises:
        RequestError: if the bundles are of different checkpoints, or there is nothing to compare,
            or the backend runs engines.
        BackendError: if a backend cannot run its bundle.
    """
    if task is None and text is None:
        raise RequestError("there is nothing to compare; give a task, a text, or both")
    _require_same_model(bundle, reference)
    logits = answers = prediction = None
    if task is not None:
        logits, answers = _compare_answers(bundle, reference, task, backend, on_progress)
    if text is not None:
        prediction = _compare_text(bundle, reference, text, backend)
    return PrecisionReport(
        bundle=str(bundle.path),
        reference=str(reference.path),
        backend=backend,
        precision=describe_precision(bundle.manifest.recipe),
        reference_precision=describe_precision(reference.manifest.recipe),
        weight_bytes=_weight_bytes(bundle),
        reference_weight_bytes=_weight_bytes(reference),
        logits=logits,
        answers=answers,
        text=prediction,
    )


def describe_precision(recipe: ExportRecipe) -> str:
    """Return a recipe's precision in a few words, such as ``int4 (blocks of 32, mse), ...``."""
    words = str(recipe.precision)
    if recipe.precision in ("int8", "int4"):
        clipping = "" if recipe.clipping == "none" else f", {recipe.clipping}"
        words += f" (blocks of {recipe.block_size}{clipping})"
    floats = activations(recipe, recipe.precision)
    rest = [f"vision {vision_precision(recipe)}", f"head {head_precision(recipe)}"]
    if recipe.embedding_precision is not None:
        rest.append(f"embeddings {recipe.embedding_precision}")
    if floats != recipe.precision:
        rest.append(f"activations {floats}")
    return ", ".join([words, *rest])


def _require_same_model(bundle: Bundle, reference: Bundle) -> None:
    for name in ("source", "model_type", "decoder", "image"):
        ours, theirs = getattr(bundle.manifest, name), getattr(reference.manifest, name)
        if ours != theirs:
            raise RequestError(
                f"{bundle.path} and {reference.path} are of different checkpoints: {name} is "
                f"{ours} and {theirs}; export both from one"
            )
    if bundle.schedule != reference.schedule:
        raise RequestError(
            f"{bundle.path} and {reference.path} prune before different layers, "
            f"{list(bundle.schedule.stages)} and {list(reference.schedule.stages)}; export both "
            f"with the same --stages"
        )


def _compare_answers(
    bundle: Bundle,
    reference: Bundle,
    task: Task,
    backend: str,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[LogitsReport, AnswersReport]:
    report = on_progress or (lambda _done, _total: None)
    taps = LogitTap(backend), LogitTap()
    reader = BoxReader.of(reference)
    pairs: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    texts: list[tuple[str, str]] = []
    scores: list[tuple[float, float] | None] = []
    with Session(bundle, taps[0]) as tested, Session(reference, taps[1]) as expected:
        report(0, len(task.samples))
        for done, sample in enumerate(task.samples, start=1):
            for found, wanted, heard in _answer_all(sample, tested, expected, taps):
                texts.append((found, wanted))
                pairs += heard
            scores += _scores(sample, texts[-len(sample.questions) :], reference, reader)
            report(done, len(task.samples))
    known = [each for each in scores if each is not None]
    rates = None
    if len(known) == len(scores):
        rates = (np.array(known) >= MIN_IOU).mean(axis=0)
    return _logits_report(pairs), AnswersReport(
        task=task.name,
        num_questions=len(texts),
        agreement=sum(found == wanted for found, wanted in texts) / max(1, len(texts)),
        accuracy=None if rates is None else float(rates[0]),
        reference_accuracy=None if rates is None else float(rates[1]),
    )


def _answer_all(
    sample: Sample, tested: Session, expected: Session, taps: tuple[LogitTap, LogitTap]
) -> Iterator[tuple[str, str, list[tuple[NDArray[np.float32], NDArray[np.float32]]]]]:
    """Answer each question three times: the reference, the same words again, and freely."""
    image = load_image(sample.image)
    for question in sample.questions:
        taps[1].listen()
        wanted = expected.generate(image, question.text).text
        taps[0].listen(script=taps[1].heard)
        tested.generate(image, question.text)
        heard = list(zip(taps[0].heard, taps[1].heard, strict=True))
        taps[0].listen()
        yield tested.generate(image, question.text).text, wanted, heard


def _scores(
    sample: Sample, texts: list[tuple[str, str]], bundle: Bundle, reader: BoxReader | None
) -> Iterator[tuple[float, float] | None]:
    image = load_image(sample.image)
    images = bundle.manifest.image
    for question, (found, wanted) in zip(sample.questions, texts, strict=True):
        if question.box is not None and reader is None:
            yield None
            continue
        first, second = (
            score_answer(image, question, text, reader, images) for text in (found, wanted)
        )
        yield first, second


def _logits_report(
    pairs: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
) -> LogitsReport:
    cosines = [compare(found, wanted).cosine for found, wanted in pairs]
    is_same = [found.argmax() == wanted.argmax() for found, wanted in pairs]
    return LogitsReport(
        num_positions=len(pairs),
        mean_cosine=float(np.mean(cosines)),
        lowest_cosine=float(np.min(cosines)),
        next_token_agreement=float(np.mean(is_same)),
    )


def _compare_text(bundle: Bundle, reference: Bundle, text: Path, backend: str) -> TextReport:
    agreements, cosines, losses, reference_losses = [], [], [], []
    # Window by window side by side: the logits of a whole text would not fit.
    ours = predict_text(bundle, text, backend=backend)
    for found, expected in zip(ours, predict_text(reference, text), strict=True):
        agreements.append(found.likeliest == expected.likeliest)
        cosines.append(found.cosine_to(expected))
        losses.append(found.losses)
        reference_losses.append(expected.losses)
    return TextReport(
        file=text.name,
        num_positions=sum(map(len, losses)),
        perplexity=float(np.exp(np.concatenate(losses).mean())),
        reference_perplexity=float(np.exp(np.concatenate(reference_losses).mean())),
        mean_cosine=float(np.concatenate(cosines).mean()),
        next_token_agreement=float(np.concatenate(agreements).mean()),
    )


def _weight_bytes(bundle: Bundle) -> int:
    files = bundle.manifest.files
    names = {graph.weights_file for graph in bundle.manifest.graphs}
    if missing := names - set(files):
        raise BundleError(f"{bundle.path} lists no size of {min(missing)}; export it again")
    return sum(files[name].num_bytes for name in names)
