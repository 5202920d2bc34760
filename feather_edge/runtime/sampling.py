"""Choose the next token from the logits of the last position."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from feather_edge.errors import BackendError, RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 takes the best token; above 0 logits are divided by it before sampling.
        top_p: sample from the smallest set of best tokens whose probabilities sum to this; 1 for
            all tokens. It has no effect at temperature 0.
        seed: of the random numbers; the same seed and logits give the same tokens.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise RequestError(
                f"temperature {self.temperature} is out of range; it must be 0 (always the best "
                "token) or more"
            )
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top-p {self.top_p} is out of range; it must be in (0, 1]")
        if self.seed < 0:
            raise RequestError(f"seed {self.seed} is out of range; it must be 0 or more")


class Sampler:
    """Choose one token per call; one sampler serves one request."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def __call__(self, logits: np.ndarray) -> int:
        """Return a token id.

        Args:
            logits: [vocab], of any float type; the lowest id wins a tie at temperature 0.

        Raises:
            BackendError: a logit is not finite.
        """
        _check_finite(logits)
        if self._sampling.temperature == 0:
            return int(np.argmax(logits))
        probabilities = self._probabilities(logits.astype(np.float64))
        return int(self._random.choice(len(probabilities), p=probabilities))

    def _probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Softmax over the nucleus; [vocab] -> [vocab]."""
        # Gaps to the best logit may overflow to -inf under a tiny temperature, and mean "never".
        with np.errstate(over="ignore"):
            gaps = (logits - logits.max()) / self._sampling.temperature
        probabilities: np.ndarray = np.exp(gaps)
        probabilities /= probabilities.sum()
        if self._sampling.top_p < 1:
            order = np.argsort(-probabilities, kind="stable")
            mass_before = np.cumsum(probabilities[order]) - probabilities[order]
            probabilities[order[mass_before >= self._sampling.top_p]] = 0.0
            probabilities /= probabilities.sum()
        return probabilities


def _check_finite(logits: np.ndarray) -> None:
    finite = np.isfinite(logits)
    if finite.all():
        return
    first = int(np.argmin(finite))
    raise BackendError(
        f"logits are not finite: {int(logits.size - finite.sum())} of {logits.size} are inf or "
        f"nan, the first is token {first} with {logits[first]}; half precision may have "
        "overflowed: export with --precision fp32, or check the graphs with feather-edge verify"
    )
