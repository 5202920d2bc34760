"""Which criterion to trust: every one at every keep ratio, against the unpruned model.

One session answers everything; criterion and ratio change from request to request. Answers are
kept on disk as they come, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from feather_edge import __version__
from feather_edge.bundle import Bundle
from feather_edge.errors import RequestError
from feather_edge.evaluate.answers import MIN_IOU, BoxReader, is_same_word
from feather_edge.evaluate.boxes import intersection_over_union
from feather_edge.evaluate.comparison import UNPRUNED
from feather_edge.evaluate.records import Conditions, Record, RecordFile
from feather_edge.evaluate.summary import Evaluation, summarise
from feather_edge.images import load_image
from feather_edge.manifest import MANIFEST_FILE
from feather_edge.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from PIL import Image

    from feather_edge.evaluate.answers import BoxFormat
    from feather_edge.evaluate.comparison import Budget, Comparison
    from feather_edge.evaluate.records import Trial
    from feather_edge.evaluate.tasks import Question, Sample, Task
    from feather_edge.images import ImageSpec
    from feather_edge.pruning import Pruning
    from feather_edge.runtime.result import Result

    OnProgress = Callable[[int, int], None]
    """Called with the samples done in this run, and all that it has to do."""

__all__ = ["Gathered", "evaluate", "gather", "score_answer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """Every answer that a comparison asks for, and under which conditions it was given.

    ``keys`` are the methods and keep ratios, as ``Comparison.prunings`` has them.
    """

    bundle: Bundle
    conditions: Conditions
    records: tuple[Record, ...]
    keys: tuple[tuple[str, float], ...]


def evaluate(
    bundle_folder: Path,
    task: Task,
    comparison: Comparison,
    *,
    output: Path,
    box_format: BoxFormat | None = None,
    backend: str = "auto",
    target: str | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Answer every question of a task with every method and ratio, and compare.

    Arguments and errors are those of ``gather``.
    """
    gathered = gather(
        bundle_folder,
        task,
        comparison,
        output=output,
        box_format=box_format,
        backend=backend,
        target=target,
        force=force,
        on_progress=on_progress,
    )
    return summarise(
        gathered.bundle,
        gathered.conditions,
        gathered.records,
        task=task,
        keys=gathered.keys,
    )


def gather(
    bundle_folder: Path,
    task: Task,
    comparison: Comparison,
    *,
    output: Path,
    box_format: BoxFormat | None = None,
    backend: str = "auto",
    target: str | None = None,
    force: bool = False,
    is_unpruned_asked: bool = True,
    on_progress: OnProgress | None = None,
) -> Gathered:
    """Answer every question of a task with every method and ratio.

    Args:
        bundle_folder: a bundle; without pruning stages only methods before the decoder differ.
        task: see ``feather_edge.evaluate.tasks.load_task``.
        comparison: what to compare.
        output: folder of the answers; those it holds already are not asked for again.
        box_format: how the model writes boxes; None takes location tokens.
        backend: what runs the graphs.
        target: whose engines, see ``Session.open``.
        force: start over.
        is_unpruned_asked: answers of the unpruned model do not depend on where the decoder is
            split, so of several bundles of one checkpoint one may be enough.
        on_progress: called before the first and after every sample.

    Raises:
        RequestError: if task, comparison or output do not fit each other or the bundle.
    """
    # 1. What is compared, and how answers are read.
    bundle = Bundle.open(bundle_folder)
    prunings = comparison.prunings(bundle)
    base = prunings[UNPRUNED]
    if not is_unpruned_asked:
        del prunings[UNPRUNED]
    reader = _box_reader(bundle, task, box_format)
    stated = _conditions(
        bundle,
        task,
        base=base,
        budget=comparison.budget,
        reader=reader,
        backend=backend if target is None else f"{backend}:{target}",
    )
    # 2. What has no answer yet.
    trials = {sample.name: _trials(sample, prunings) for sample in task.samples}
    with RecordFile(output, stated, force=force) as records:
        todo = [sample for sample in task.samples if records.missing(trials[sample.name])]
        report = on_progress or (lambda _done, _total: None)
        report(0, len(todo))
        # 3. Answer it: picture by picture, so that a run cut short compares like with like.
        if todo:
            with Session.open(bundle, backend=backend, target=target) as session:
                examiner = _Examiner(session, reader)
                for done, sample in enumerate(todo, start=1):
                    missing = records.missing(trials[sample.name])
                    examiner.ask_all(sample, missing, prunings, records)
                    report(done, len(todo))
        # 4. Answers of other methods, ratios or samples may lie beside these.
        wanted = tuple(records.records[trial] for each in trials.values() for trial in each)
    return Gathered(bundle=bundle, conditions=stated, records=wanted, keys=tuple(prunings))


def _trials(sample: Sample, keys: Iterable[tuple[str, float]]) -> list[Trial]:
    numbers = range(len(sample.questions))
    return [(sample.name, number, *key) for key in keys for number in numbers]


class _Examiner:
    """Asks one question at a time and judges the answer."""

    def __init__(self, session: Session, reader: BoxReader | None) -> None:
        self._session = session
        self._reader = reader
        self._images = session.bundle.manifest.image

    def ask_all(
        self,
        sample: Sample,
        trials: Sequence[Trial],
        prunings: dict[tuple[str, float], Pruning],
        records: RecordFile,
    ) -> None:
        """Record the answers to some trials of one picture."""
        image = load_image(sample.image)
        for trial in trials:
            pruning = _reseeded(prunings[(trial[2], trial[3])], sample.name)
            records.add(self._ask(image, sample.questions[trial[1]], trial, pruning))

    def _ask(
        self, image: Image.Image, question: Question, trial: Trial, pruning: Pruning
    ) -> Record:
        result = self._session.generate(image, question.text, pruning=pruning)
        score = score_answer(image, question, result.text, self._reader, self._images)
        sample, number, method, keep_ratio = trial
        return Record(
            sample=sample,
            question=number,
            kind=question.kind,
            method=method,
            keep_ratio=keep_ratio,
            text=result.text,
            score=score,
            is_right=score >= MIN_IOU,
            num_text_tokens=result.num_prompt_tokens - result.num_visual_tokens,
            num_visual_tokens=tuple(_entering(result)),
            kept_row=_kept_row(result),
            ttft_ms=result.ttft_ms,
        )


def _kept_row(result: Result) -> float:
    """Return how far down their rasters the kept tokens are on average, 0 to 1."""
    places = [
        np.repeat(np.arange(raster.height) / max(1, raster.height - 1), raster.width)
        for raster in result.rasters
    ]
    every = np.concatenate(places)
    return float(np.mean(every[result.stages[0].kept_indices] if result.stages else every))


def score_answer(
    image: Image.Image,
    question: Question,
    text: str,
    reader: BoxReader | None,
    images: ImageSpec,
) -> float:
    """Return how right an answer is: the overlap of the boxes, or 1 for the right word, else 0.

    ``reader`` may be None for questions that ask for a word.
    """
    if question.answer is not None:
        return float(is_same_word(text, question.answer))
    assert reader is not None  # noqa: S101 - checked before the run
    assert question.box is not None  # noqa: S101 - for the type checker
    geometry = images.geometry(image.size)
    said = reader.read(text, geometry)
    return 0.0 if said is None else intersection_over_union(geometry.to_image(said), question.box)


def _reseeded(pruning: Pruning, sample: str) -> Pruning:
    """Return the request for one picture: ``random`` must not keep the same tokens of them all."""
    if "random" not in {pruning.criterion, pruning.pre_criterion}:
        return pruning
    return dataclasses.replace(pruning, seed=pruning.seed + zlib.crc32(sample.encode()))


def _entering(result: Result) -> Iterator[int]:
    before = [stage for stage in result.stages if stage.before_layer == 0]
    yield before[0].num_kept if before else result.num_visual_tokens
    for stage in result.stages[len(before) :]:
        yield stage.num_kept


def _box_reader(bundle: Bundle, task: Task, box_format: BoxFormat | None) -> BoxReader | None:
    reader = BoxReader.of(bundle, box_format)
    has_boxes = any(question.box for sample in task.samples for question in sample.questions)
    if reader is None and has_boxes:
        raise RequestError(
            f"task {task.name} asks for boxes and {bundle.path} has no location tokens; say how "
            f"the model writes boxes with --box-format pixels, 0-1, 0-100 or 0-1000"
        )
    return reader


def _conditions(
    bundle: Bundle,
    task: Task,
    *,
    base: Pruning,
    budget: Budget,
    reader: BoxReader | None,
    backend: str,
) -> Conditions:
    manifest = (bundle.path / MANIFEST_FILE).read_bytes()
    return Conditions(
        feather_edge_version=__version__,
        bundle_source=bundle.manifest.source,
        bundle_sha256=hashlib.sha256(manifest).hexdigest(),
        stages=bundle.schedule.stages,
        backend=backend,
        task=task.name,
        task_digest=task.digest,
        budget=budget,
        box_format=None if reader is None else reader.box_format,
        stride=base.stride,
        selection=base.selection,
        seed=base.seed,
    )
