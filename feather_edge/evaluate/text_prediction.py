"""How well a bundle's decoder predicts a text: all positions of one prefill after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from feather_edge.errors import RequestError
from feather_edge.evaluate.logit_tap import LogitTap
from feather_edge.pruning import Layout
from feather_edge.runtime.decoder import DecoderChain
from feather_edge.runtime.embeddings import Embeddings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from feather_edge.bundle import Bundle

__all__ = ["WINDOW", "TextPrediction", "predict_text"]

WINDOW = 256
"""Tokens that are read at once; each window starts afresh."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPrediction:
    """What was predicted after each token of a window but the last.

    Attributes:
        logits: [S - 1, V].
        following: [S - 1], the tokens that came.
    """

    logits: NDArray[np.float32]
    following: NDArray[np.int64]

    @property
    def likeliest(self) -> NDArray[np.int64]:
        """The token found likeliest at each position."""
        tokens: NDArray[np.int64] = self.logits.argmax(axis=1)
        return tokens

    @property
    def losses(self) -> NDArray[np.float64]:
        """Cross-entropy at each position, in nats."""
        logits = self.logits.astype(np.float64)
        top = logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
        losses: NDArray[np.float64] = log_sum - logits[np.arange(len(logits)), self.following]
        return losses

    def cosine_to(self, other: TextPrediction) -> NDArray[np.float64]:
        """Return the cosine of both logits at each position."""
        first, second = self.logits.astype(np.float64), other.logits.astype(np.float64)
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        cosines: NDArray[np.float64] = (first * second).sum(axis=1) / lengths
        return cosines


def predict_text(
    bundle: Bundle, text: Path, *, backend: str = "onnxruntime"
) -> Iterator[TextPrediction]:
    """Read a text window by window; nothing is pruned.

    Args:
        bundle: whose decoder.
        text: in UTF-8.
        backend: that runs its graphs, see ``LogitTap``.

    Raises:
        RequestError: if the text cannot be read or is too short.
    """
    token_ids = _tokens(bundle, text)
    tap = LogitTap(backend, all_positions=True)
    graphs = [tap.open(bundle.path / spec.file, spec) for spec in bundle.decoders]
    embeddings = Embeddings.open(bundle)
    # A last window of one token has nothing that follows.
    for start in range(0, len(token_ids) - 1, WINDOW):
        window = token_ids[start : start + WINDOW]
        chain = DecoderChain(graphs, bundle.manifest, bundle.schedule, tap)
        tap.listen()
        chain.prefill(embeddings[window], Layout.full(len(window), []), None)
        (logits,) = tap.heard
        yield TextPrediction(logits=logits[:-1, 0], following=window[1:])


def _tokens(bundle: Bundle, text: Path) -> NDArray[np.int64]:
    try:
        words = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{text} cannot be read: {error}; give a text in UTF-8") from error
    tokenizer: Any = Tokenizer.from_file(str(bundle.path / "tokenizer.json"))
    token_ids = np.array(tokenizer.encode(words, add_special_tokens=False).ids, np.int64)
    if len(token_ids) < 2:
        raise RequestError(f"{text} has {len(token_ids)} tokens; at least 2 are needed")
    return token_ids
