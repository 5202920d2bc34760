"""How far two runs of the same graph on the same inputs are apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Difference", "compare", "count_equal", "is_top_k", "overlap"]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Two tensors that should be equal.

    Attributes:
        cosine: of all finite values, 1 where both are all zero.
        max_abs: largest absolute difference of finite values.
        num_not_finite: values of the tensor under test that are infinite or no number.
        reference_num_not_finite: of the reference, likewise.
        first_not_finite: the first of them, or else of the reference's: its value and index.
    """

    cosine: float
    max_abs: float
    num_not_finite: int
    reference_num_not_finite: int
    first_not_finite: str | None = None

    @property
    def severity(self) -> tuple[int, float]:
        """What sorts differences from mild to bad."""
        return (self.num_not_finite + self.reference_num_not_finite, -self.cosine)

    def is_bad(self, lowest_cosine: float) -> bool:
        """Return whether the two differ too much, or either holds what is no number."""
        if self.num_not_finite or self.reference_num_not_finite:
            return True
        return self.cosine < lowest_cosine


def compare(found: NDArray[Any], reference: NDArray[Any]) -> Difference:
    """Compare two float tensors of the same shape [...]."""
    first, second = (each.astype(np.float64).ravel() for each in (found, reference))
    finite = np.isfinite(first), np.isfinite(second)
    both = finite[0] & finite[1]
    first, second = first[both], second[both]
    lengths = float(np.linalg.norm(first)), float(np.linalg.norm(second))
    if lengths == (0.0, 0.0):
        cosine = 1.0
    else:
        cosine = float(first @ second) / max(lengths[0] * lengths[1], np.finfo(np.float64).tiny)
    return Difference(
        cosine=cosine,
        max_abs=float(np.abs(first - second).max(initial=0.0)),
        num_not_finite=int((~finite[0]).sum()),
        reference_num_not_finite=int((~finite[1]).sum()),
        first_not_finite=_first_not_finite(found) or _first_not_finite(reference),
    )


def _first_not_finite(values: NDArray[Any]) -> str | None:
    """Return the first value that is infinite or no number, and where it is; None if none is."""
    values = values.astype(np.float64)
    places = np.argwhere(~np.isfinite(values))
    if not len(places):
        return None
    return f"{values[tuple(places[0])]} at {places[0].tolist()}"


def overlap(found: NDArray[np.int64], reference: NDArray[np.int64]) -> float:
    """Return the share of the reference's indices that were found."""
    return len(np.intersect1d(found, reference)) / max(1, len(reference))


def is_top_k(
    kept: NDArray[np.int64], scores: NDArray[np.float32], priority: NDArray[np.float32]
) -> bool:
    """Return whether ``kept`` [K] are ascending and the best K of ``scores + priority`` [S].

    Which of several equal scores is kept is not judged.
    """
    ranked = scores + priority
    left = np.delete(ranked, kept)
    ascends = bool((np.diff(kept) > 0).all())
    return ascends and (len(left) == 0 or bool(ranked[kept].min() >= left.max()))


def count_equal(found: tuple[int, ...], reference: tuple[int, ...]) -> int:
    """Return how many tokens agree before the first that does not."""
    for count, (token, expected) in enumerate(zip(found, reference, strict=False)):
        if token != expected:
            return count
    return min(len(found), len(reference))
