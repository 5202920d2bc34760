"""What the answers of an evaluation add up to: one row per method and keep ratio."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import msgspec

from feather_edge.evaluate.cost import prefill_flops
from feather_edge.evaluate.records import Conditions
from feather_edge.evaluate.statistics import wilson_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feather_edge.bundle import Bundle
    from feather_edge.evaluate.records import Record
    from feather_edge.evaluate.tasks import Task

    Topics = dict[tuple[str, int], str | None]

__all__ = ["Evaluation", "Interval", "Row", "summarise"]

SHORT_ROW = (
    "method", "keep_ratio", "flops_ratio", "localisation_acc", "coarse_acc", "ci95",
    "mean_kept_row",
)  # fmt: skip


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """95 % Wilson intervals; None where nothing of the kind was asked."""

    localisation_acc: tuple[float, float] | None
    coarse_acc: tuple[float, float] | None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One method at one keep ratio.

    Attributes:
        method: criterion; ``none`` is unpruned.
        keep_ratio: the one asked for; 1 for ``none``.
        num_visual_tokens: that entered each segment, mean.
        flops_ratio: decoder prefill by that of ``none``, text tokens included.
        localisation_acc: share of boxes that overlap the truth by at least 0.5.
        mean_iou: mean overlap.
        coarse_acc: share of answers that are the very word.
        ci95: of both shares.
        mean_kept_row: how far down the picture the tokens are that the first stage kept: 0 is the
            top row, 1 the bottom, 0.5 no preference.
        median_ttft_ms: time to the first token, on this machine in this run.
        topic_acc: share of right answers per topic, where questions have topics.
    """

    method: str
    keep_ratio: float
    num_visual_tokens: tuple[float, ...]
    flops_ratio: float
    localisation_acc: float | None
    mean_iou: float | None
    coarse_acc: float | None
    ci95: Interval
    mean_kept_row: float
    median_ttft_ms: float
    topic_acc: dict[str, float]


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The whole comparison, as ``summary.json`` has it."""

    task: str
    num_samples: int
    num_localisation: int
    num_coarse: int
    conditions: Conditions
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return what ``feather-edge eval --json`` prints: the comparison without its record."""
        rows = [msgspec.to_builtins(row) for row in self.rows]
        return {
            "task": self.task,
            "num_samples": self.num_samples,
            "rows": [{name: row[name] for name in SHORT_ROW} for row in rows],
        }


def summarise(
    bundle: Bundle,
    conditions: Conditions,
    records: Sequence[Record],
    *,
    task: Task,
    keys: Sequence[tuple[str, float]],
) -> Evaluation:
    """Return the comparison of ``keys`` (method and ratio), the first of which is unpruned."""
    groups: dict[tuple[str, float], list[Record]] = defaultdict(list)
    for record in records:
        groups[(record.method, record.keep_ratio)].append(record)
    unpruned = groups[keys[0]]
    full_flops = _flops(bundle, unpruned)
    topics = {
        (sample.name, number): question.topic
        for sample in task.samples
        for number, question in enumerate(sample.questions)
    }
    return Evaluation(
        task=conditions.task,
        num_samples=len(task.samples),
        num_localisation=sum(record.kind == "localisation" for record in unpruned),
        num_coarse=sum(record.kind == "coarse" for record in unpruned),
        conditions=conditions,
        rows=tuple(
            _row(key, groups[key], _flops(bundle, groups[key]) / full_flops, topics)
            for key in keys
        ),
    )


def _row(
    key: tuple[str, float], records: Sequence[Record], flops_ratio: float, topics: Topics
) -> Row:
    by_topic: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if (topic := topics[(record.sample, record.question)]) is not None:
            by_topic[topic].append(record)
    places = [record for record in records if record.kind == "localisation"]
    coarse = [record for record in records if record.kind == "coarse"]
    counts = zip(*(record.num_visual_tokens for record in records), strict=True)
    return Row(
        method=key[0],
        keep_ratio=key[1],
        num_visual_tokens=tuple(statistics.fmean(count) for count in counts),
        flops_ratio=flops_ratio,
        localisation_acc=_share(places),
        mean_iou=statistics.fmean(record.score for record in places) if places else None,
        coarse_acc=_share(coarse),
        ci95=Interval(localisation_acc=_interval(places), coarse_acc=_interval(coarse)),
        mean_kept_row=statistics.fmean(record.kept_row for record in records),
        topic_acc={
            topic: sum(each.is_right for each in group) / len(group)
            for topic, group in by_topic.items()
        },
        median_ttft_ms=statistics.median(record.ttft_ms for record in records),
    )


def _flops(bundle: Bundle, records: Sequence[Record]) -> int:
    return sum(
        prefill_flops(bundle, record.num_visual_tokens, record.num_text_tokens)
        for record in records
    )


def _share(records: Sequence[Record]) -> float | None:
    return sum(record.is_right for record in records) / len(records) if records else None


def _interval(records: Sequence[Record]) -> tuple[float, float] | None:
    if not records:
        return None
    return wilson_interval(sum(record.is_right for record in records), len(records))
