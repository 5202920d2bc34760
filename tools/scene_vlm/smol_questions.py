"""Questions for a decoder with a vocabulary of its own: chat turns, and boxes as plain numbers.

A coordinate is two digits: per cent of the side of the picture. The digits are trained on soft
targets: a narrow bell over the hundred numbers, as the tens digit sees it and, given the tens
digit, the units digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from feather_edge.evaluate.scenes import (
    COLOURS,
    IMAGE_SIZE_PX,
    NUM_PATCHES_PER_SIDE,
    SHAPES,
    Kind,
    ask,
    plural,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedTokenizerFast

    from feather_edge.evaluate.boxes import Box
    from feather_edge.evaluate.scenes import Question, SceneObject

NUM_VISUAL_TOKENS = NUM_PATCHES_PER_SIDE**2
BEFORE_IMAGE = "<|im_start|>user\n"
AFTER_QUESTION = "<|im_end|>\n<|im_start|>assistant\n"
END_OF_TURN = "<|im_end|>"

_COARSE: tuple[Kind, ...] = ("presence", "count", "colour", "shape")
_COARSE_SHARES = (0.3, 0.34, 0.18, 0.18)
_SOFT_STD = 1.2
_NUMBERS = np.arange(100)
_PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
_PLACES = tuple(f"where is the {colour} {shape} ?" for colour, shape in _PAIRS)
_WORDS = (
    *(f"is there a {colour} {shape} ?" for colour, shape in _PAIRS),
    *(f"how many {plural(shape)} are there ?" for shape in SHAPES),
    *(f"how many {colour} objects are there ?" for colour in COLOURS),
    *(f"what colour is the {shape} ?" for shape in SHAPES),
    *(f"what shape is the {colour} object ?" for colour in COLOURS),
)


def box_numbers(box: Box) -> tuple[int, ...]:
    """Return a box in pixels as four numbers in 0..99, per cent of the side."""
    return tuple(min(99, max(0, round(value * 100 / IMAGE_SIZE_PX))) for value in box)


def numbers_text(numbers: tuple[int, ...]) -> str:
    """Return the answer that names a box."""
    return " ".join(f"{number:02d}" for number in numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedBatch:
    """Packed questions about B images, A positions of which are asked for the next token.

    Attributes:
        prefix: int64 [n], the tokens before the image.
        token_ids: int64 [B, T], the questions one after the other.
        groups: where they lie, see `PackedLayout`.
        rows: int64 [A], image of each asked position.
        columns: int64 [A], its place among the T.
        candidates: int64 [A, 10], tokens that may come next.
        shares: float32 [A, 10], their probabilities; 0 where there are fewer.
        weights: float32 [A], weight in the loss.
        roles: int64 [A]: 0 to 7 the digits of a box, 8 a word, 9 all others.
    """

    prefix: torch.Tensor
    token_ids: torch.Tensor
    groups: tuple[tuple[int, int], ...]
    rows: torch.Tensor
    columns: torch.Tensor
    candidates: torch.Tensor
    shares: torch.Tensor
    weights: torch.Tensor
    roles: torch.Tensor


WORD_ROLE, OTHER_ROLE = 8, 9


class _Asked(NamedTuple):
    column: int
    candidates: list[int]
    shares: list[float]
    weight: float
    role: int


class QuestionMaker:
    """Makes batches of questions with one tokenizer."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, *, num_places: int, num_words: int
    ) -> None:
        self.tokenizer = tokenizer
        self.num_places, self.num_words = num_places, num_words
        self._known: dict[str, list[int]] = {}
        self.digits = [self.encode(str(digit))[0] for digit in range(10)]
        self.prefix = self.encode(BEFORE_IMAGE)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of text."""
        if text not in self._known:
            self._known[text] = list(self.tokenizer(text, add_special_tokens=False).input_ids)
        return self._known[text]

    @cached_property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """Return number and length of the questions about one image, places before words."""

        def longest(texts: Iterable[str]) -> int:
            return max(len(self.encode(text)) for text in texts)

        ends = len(self.encode(AFTER_QUESTION))
        place = longest(_PLACES) + ends + longest(["12 34 56 78"])
        word = longest(_WORDS) + ends + longest([*COLOURS, *SHAPES, "yes"])
        return ((self.num_places, place), (self.num_words, word))

    def batch(
        self, objects: list[tuple[SceneObject, ...]], rng: np.random.Generator
    ) -> AskedBatch:
        """Return questions about every image, repeated where a scene allows too few."""
        total = sum(count * length for count, length in self.groups)
        token_ids = np.full((len(objects), total), self.tokenizer.pad_token_id, dtype=np.int64)
        rows: list[int] = []
        asked: list[_Asked] = []
        for row, items in enumerate(objects):
            first = 0
            for group, (count, length) in enumerate(self.groups):
                for _ in range(count):
                    kind: Kind = "localisation"
                    if group:
                        kind = _COARSE[int(rng.choice(len(_COARSE), p=_COARSE_SHARES))]
                    question = ask(items, kind, rng)
                    if question is not None:
                        ids, found = self._one(question, first, rng)
                        token_ids[row, first : first + len(ids)] = ids
                        asked.extend(found)
                        rows.extend([row] * len(found))
                    first += length
        width = max(len(item.candidates) for item in asked)
        padded = [item.candidates + [0] * (width - len(item.candidates)) for item in asked]
        shares = [item.shares + [0.0] * (width - len(item.shares)) for item in asked]
        return AskedBatch(
            prefix=torch.tensor(self.prefix),
            token_ids=torch.from_numpy(token_ids),
            groups=self.groups,
            rows=torch.tensor(rows),
            columns=torch.tensor([item.column for item in asked]),
            candidates=torch.tensor(padded),
            shares=torch.tensor(shares, dtype=torch.float32),
            weights=torch.tensor([item.weight for item in asked]),
            roles=torch.tensor([item.role for item in asked]),
        )

    def _one(
        self, question: Question, first: int, rng: np.random.Generator
    ) -> tuple[list[int], list[_Asked]]:
        """Return the tokens of a question with its answer, and what is asked where."""
        prompt = self.encode(question.text) + self.encode(AFTER_QUESTION)
        column = first + len(prompt) - 1
        asked = []
        if question.box is None:
            answer = self.encode(question.answer)
            for offset, token in enumerate(answer):
                asked.append(_Asked(column + offset, [token], [1.0], 2.0, WORD_ROLE))
        else:
            said, digits = self._digits(question.box, rng)
            answer = self.encode(numbers_text(said))
            for index, shares in enumerate(digits):
                offset = index // 2 * 3 + index % 2
                asked.append(_Asked(column + offset, self.digits, shares, 1.0, index))
            for offset in (2, 5, 8):
                token = answer[offset]
                asked.append(_Asked(column + offset, [token], [1.0], 0.03, OTHER_ROLE))
        end = self.encode(END_OF_TURN)
        asked.append(_Asked(column + len(answer), end, [1.0], 0.05, OTHER_ROLE))
        return prompt + answer, asked

    def _digits(
        self, box: Box, rng: np.random.Generator
    ) -> tuple[tuple[int, ...], list[list[float]]]:
        """Return a box as said in training, and the soft targets of its eight digits."""
        said, digits = [], []
        for value in box:
            distances = (_NUMBERS - value * 100 / IMAGE_SIZE_PX) / _SOFT_STD
            bell = np.exp(-0.5 * distances**2)
            bell /= bell.sum()
            # Drawn, so that both tens digits are followed by units that go with them.
            number = int(rng.choice(100, p=bell))
            table = bell.reshape(10, 10)
            units = table[number // 10] + 1e-12
            said.append(number)
            digits.append([float(share) for share in table.sum(axis=1)])
            digits.append([float(share) for share in units / units.sum()])
        return tuple(said), digits
