"""What a comparison of two backends found, and when it is too much."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from feather_edge.errors import ParityError
from feather_edge.evaluate.parity import Difference
from feather_edge.evaluate.recording import Phase  # noqa: TC001 - a field's type, read by msgspec
from feather_edge.runtime.receipt import Subject, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "AnswerReport", "ChainReport", "KeptReport", "TensorReport", "VerifyReport",
    "worst_samples",
]  # fmt: skip


HINTS = {
    "image_features": "pictures are prepared or encoded otherwise",
    "inputs_embeds": "the embedding table is another",
    "cos": "positions are counted, or turned into angles, otherwise: see rotary in the manifest",
    "sin": "positions are counted, or turned into angles, otherwise: see rotary in the manifest",
}
"""What is behind a tensor that differs."""


class TensorReport(Difference, frozen=True, kw_only=True):
    """One output of one graph, at its worst over all samples."""

    graph: str
    phase: Phase
    tensor: str
    sample: str

    @property
    def hint(self) -> str:
        """Where to look."""
        if self.tensor in HINTS:
            return HINTS[self.tensor]
        if self.tensor.startswith("layers."):
            return "its weights, or the positions and caches that it is given, are not the same"
        if self.tensor.endswith(".key"):
            return "keys hold positions: those, or weights up to here, are not the same"
        return "find the layer with --layers"

    @property
    def place(self) -> str:
        """Where it is, in words."""
        return f"{self.tensor} of {self.graph} ({self.phase}, {self.sample})"


class KeptReport(msgspec.Struct, frozen=True, kw_only=True):
    """The rows that one graph kept of a prompt.

    ``is_top_k`` says whether they are the best by the graph's own scores, however these differ.
    """

    graph: str
    sample: str
    overlap: float
    is_top_k: bool


class AnswerReport(msgspec.Struct, frozen=True, kw_only=True):
    """One answer from picture to text; ``overlaps`` are of the kept indices, stage by stage.

    ``failure`` says why there is none, ``grid_failure`` what of the recipe's grid was not kept.
    """

    sample: str
    reference: str = ""
    answer: str = ""
    num_tokens: int = 0
    num_equal_tokens: int = 0
    overlaps: tuple[float, ...] = ()
    failure: str | None = None
    grid_failure: str | None = None

    @property
    def summary(self) -> str:
        """One line for people."""
        equal = f"{self.num_equal_tokens} of {self.num_tokens} tokens equal"
        texts = f"{equal}; {self.answer!r}, reference {self.reference!r}"
        return f"{self.sample}: {self.failure or texts}"


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything ``feather-edge verify`` prints; ``first_bad`` is in the order of computation."""

    bundle: str
    tested: str
    reference: str
    lowest_cosine: float
    lowest_overlap: float
    subject: Subject
    form: int | None
    versions: dict[str, str]
    tensors: tuple[TensorReport, ...]
    kept: tuple[KeptReport, ...]
    answers: tuple[AnswerReport, ...]
    first_bad: TensorReport | None
    notes: tuple[str, ...] = ()

    @property
    def worst_of_each_graph(self) -> list[TensorReport]:
        """Of each graph and phase the output that differs most."""
        worst = {(t.graph, t.phase): t for t in sorted(self.tensors, key=lambda t: t.severity)}
        return [worst[key] for key in dict.fromkeys((t.graph, t.phase) for t in self.tensors)]

    @property
    def last_lines(self) -> list[str]:
        """What each answer came to, and how the backend ran where that is unusual."""
        notes = [f"note: {note}" for note in self.notes]
        return [each.summary for each in self.answers] + notes

    @property
    def verdict(self) -> Verdict:
        """What of this a receipt keeps."""
        worst = max(self.tensors, key=lambda each: each.severity, default=None)
        answers = [each for each in self.answers if each.failure is None]
        overlaps = [each.overlap for each in self.kept]
        overlaps += [share for each in answers for share in each.overlaps]
        return Verdict(
            subject=self.subject,
            form=self.form,
            reference=self.reference,
            versions=self.versions,
            passed=self.failure is None,
            failure=self.failure,
            lowest_cosine=self.lowest_cosine,
            lowest_overlap=self.lowest_overlap,
            worst_cosine=min((each.cosine for each in self.tensors), default=1.0),
            worst_output="" if worst is None else worst.place,
            max_abs=max((each.max_abs for each in self.tensors), default=0.0),
            num_not_finite=sum(each.num_not_finite for each in self.tensors),
            worst_overlap=min(overlaps, default=1.0),
            num_equal_tokens=sum(each.num_equal_tokens for each in answers),
            num_tokens=sum(each.num_tokens for each in answers),
        )

    def check(self) -> None:
        """Refuse what differs too much.

        Raises:
            ParityError: naming what differs first.
        """
        if self.failure is not None:
            raise ParityError(self.failure)

    @property
    def failure(self) -> str | None:
        """What differs too much first, and what to do; None where nothing does."""
        return next(self._failures(), None)

    def _failures(self) -> Iterator[str]:
        bad = self.first_bad
        pair = f"{self.tested} differs from {self.reference}"
        if bad is not None and (bad.num_not_finite or bad.reference_num_not_finite):
            yield (
                f"{pair}: {bad.place} is the first with values that are not finite: "
                f"{bad.num_not_finite}, in the reference {bad.reference_num_not_finite}, first "
                f"{bad.first_not_finite}; with fp16 this is an overflow, export with "
                f"--precision fp32"
            )
        elif bad is not None:
            yield (
                f"{pair}: {bad.place} is the first with a cosine below {self.lowest_cosine:g}: "
                f"{bad.cosine:.6f}, largest difference {bad.max_abs:.3g}; {bad.hint}"
            )
        for each in self.kept:
            if not each.is_top_k:
                yield (
                    f"{pair}: {each.graph} ({each.sample}) does not keep the best rows by its own "
                    f"scores; its selection is wrong, build it without a plugin and compare"
                )
            if each.overlap < self.lowest_overlap:
                yield (
                    f"{pair}: {each.graph} ({each.sample}) keeps {each.overlap:.1%} of the "
                    f"reference's rows, less than {self.lowest_overlap:.1%}"
                )
        for answer in self.answers:
            if answer.grid_failure is not None:
                yield f"{self.tested} ({answer.sample}): {answer.grid_failure}"
            if answer.failure is not None:
                yield f"{pair}: no answer to {answer.sample}: {answer.failure}"


class ChainReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was compared of one bundle, and why the rest was not."""

    bundle: str
    passed: bool
    reports: tuple[VerifyReport, ...]
    skipped: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse what differs too much.

        Raises:
            ParityError: of the first comparison that failed.
        """
        for report in self.reports:
            report.check()


def worst_samples(tensors: Sequence[TensorReport]) -> tuple[TensorReport, ...]:
    """Return each tensor's worst sample, in the order of computation."""
    worst: dict[tuple[str, str, str], TensorReport] = {}
    for each in tensors:
        key = (each.graph, each.phase, each.tensor)
        if key not in worst or each.severity > worst[key].severity:
            worst[key] = each
    return tuple(worst.values())
