"""Turn token ids into text, at once or as they come."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

# transformers' clean_up_tokenization, in its order.
_CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
# The clean-up looks at 4 characters at a time, and one replacement can make room for another.
_CLEAN_UP_REACH = 8

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Decode ids as transformers' decode(skip_special_tokens=True) does."""

    def __init__(self, tokenizer: Tokenizer, *, has_clean_up: bool) -> None:
        """Decode with `tokenizer`; `has_clean_up` removes the spaces before punctuation."""
        self.has_clean_up = has_clean_up
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = {token_id for token_id, token in added.items() if token.special}

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens left out."""
        text = self.decode_raw(ids)
        return clean_up(text) if self.has_clean_up else text

    def decode_raw(self, ids: Sequence[int]) -> str:
        """Return the text of ids before the clean-up of spaces."""
        text: str = self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=True)
        return text

    def is_open_ended(self, token_id: int) -> bool:
        """Whether the text up to this token may change with the next one.

        A run of byte tokens, with special tokens left out of it, is decoded as one.
        """
        token = self._tokenizer.id_to_token(token_id) or ""
        return token_id in self._special_ids or _BYTE_TOKEN.fullmatch(token) is not None


class StreamDecoder:
    """Decode one token at a time; the pieces join to what `Detokenizer.decode` returns.

    A piece may be empty: a character of several tokens comes with its last one. Only ids that are
    no valid UTF-8 may give other replacement characters than decoding them at once.
    """

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer
        self._ids: list[int] = []
        # Tokens before _read are out; those from _prefix on are decoded again as the context
        # in which the next ones are read, because a first token loses its leading space.
        self._prefix = 0
        self._read = 0
        self._raw = ""
        self._num_emitted = 0

    def step(self, token_id: int) -> str:
        """Take the next token; return the text that is certain by now."""
        self._ids.append(int(token_id))
        if self._detokenizer.is_open_ended(int(token_id)):
            return ""
        fresh = self._fresh()
        if not fresh or fresh.endswith(_INCOMPLETE):
            return ""
        self._prefix, self._read = self._read, len(self._ids)
        return self._emit(fresh)

    def flush(self) -> str:
        """Return what is left after the last token."""
        fresh = self._fresh()
        self._prefix = self._read = len(self._ids)
        return self._emit(fresh, is_last=True)

    def _fresh(self) -> str:
        window = self._ids[self._prefix :]
        context = self._detokenizer.decode_raw(window[: self._read - self._prefix])
        return self._detokenizer.decode_raw(window)[len(context) :]

    def _emit(self, fresh: str, *, is_last: bool = False) -> str:
        if not self._detokenizer.has_clean_up:
            return fresh
        self._raw += fresh
        text = clean_up(self._raw)
        end = len(text) if is_last else max(self._num_emitted, len(text) - _CLEAN_UP_REACH)
        piece = text[self._num_emitted : end]
        self._num_emitted = end
        return piece


def clean_up(text: str) -> str:
    """Remove the spaces that a word-level tokenizer leaves before punctuation."""
    for before, after in _CLEAN_UP:
        text = text.replace(before, after)
    return text
