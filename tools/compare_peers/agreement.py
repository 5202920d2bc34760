"""Whether contenders give the reference's greedy tokens, and how far off they are where not.

A reference that is asked for ``choices`` tells, for each of its tokens, which others it would have
given next, and how far their logits are behind the best. What another contender gives at the first
place that differs is then an answer that the reference nearly gave, as rounding makes them, or one
that it would not give: another prompt, picture or model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compare_peers.contenders import Precision
    from compare_peers.runner import Answer

NUM_CHOICES = 32
EXPLAINED = {"32": 0.02, "16": 0.1, "8": 0.2}
"""How far behind the reference's best, in standard deviations of its logits, a contender's token
may be for its precision to explain it. On the 0.1 B Qwen2.5-VL bf16 was 0.07 behind, 8 bits 0.16,
and a norm without its epsilon, in any precision, 0.22: of 8 bits the verdict alone says little, so
look at a peer's row of 32 bits too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first token of one answer that is not the reference's.

    Attributes:
        question: which; from 0.
        place: of the token in the answer; from 0.
        rank: of the contender's token among what the reference would have given, its own being 1;
            None if it is not among the first ``NUM_CHOICES``.
        behind: how far the token's logit is behind the best, in standard deviations of the
            reference's logits.
    """

    question: int
    place: int
    rank: int | None
    behind: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What a contender's greedy tokens have in common with the reference's.

    Attributes:
        share: of the reference's tokens, up to the first that differs: what follows answers
            another text.
        same_prompt: whether the prompts had as many tokens; None where one does not tell.
        differences: of each answer that is not the reference's.
    """

    share: float
    same_prompt: bool | None
    differences: list[Difference]

    def verdict(self, precision: Precision) -> str:
        """Return ``same``, ``explained``, or ``unexplained``; see ``EXPLAINED``."""
        if self.same_prompt is False:
            return "another prompt"
        if not self.differences:
            return "same"
        limit = EXPLAINED[precision]
        near = all(each.behind is not None and each.behind <= limit for each in self.differences)
        return "explained" if near else "unexplained"


def agreement(given: Sequence[Answer], reference: Sequence[Answer]) -> Agreement:
    """Return what answers have in common with the reference's to the same questions."""
    differences, num_same = [], 0
    for question, (answer, expected) in enumerate(zip(given, reference, strict=True)):
        place = _num_common(answer.token_ids, expected.token_ids)
        num_same += place
        if place < len(expected.token_ids):
            differences.append(_difference(question, place, answer, expected))
    lengths = [
        (answer.num_prompt_tokens, expected.num_prompt_tokens)
        for answer, expected in zip(given, reference, strict=True)
    ]
    is_told = all(None not in pair for pair in lengths)
    return Agreement(
        share=num_same / sum(len(each.token_ids) for each in reference),
        same_prompt=all(one == other for one, other in lengths) if is_told else None,
        differences=differences,
    )


def _difference(question: int, place: int, answer: Answer, expected: Answer) -> Difference:
    rank, behind = None, None
    choices = expected.choices[place] if expected.choices else []
    for number, (token_id, distance) in enumerate(choices, start=1):
        if answer.token_ids[place : place + 1] == [token_id]:
            rank, behind = number, distance
    return Difference(question=question, place=place, rank=rank, behind=behind)


def _num_common(first: Sequence[int], second: Sequence[int]) -> int:
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return min(len(first), len(second))
