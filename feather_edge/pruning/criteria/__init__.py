"""Criteria: one file each, one registry. A criterion turns a request into a ``StagePlan``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from feather_edge.errors import RequestError
from feather_edge.pruning.criteria.fastv import FastV
from feather_edge.pruning.criteria.feather import Feather
from feather_edge.pruning.criteria.ivc import Ivc
from feather_edge.pruning.criteria.ivc_value import value_scores
from feather_edge.pruning.criteria.pyramiddrop import PyramidDrop
from feather_edge.pruning.criteria.random import Random
from feather_edge.pruning.criteria.uniform import Uniform

if TYPE_CHECKING:
    from feather_edge.pruning.layout import Layout
    from feather_edge.pruning.plan import StagePlan
    from feather_edge.pruning.request import Pruning


class Criterion(Protocol):
    """A way to rank visual tokens.

    Attributes:
        options: fields of ``Pruning`` that this criterion looks at, beside ``keep_ratio``.
    """

    options: ClassVar[frozenset[str]]

    def plan(self, pruning: Pruning, stage: int, num_stages: int, layout: Layout) -> StagePlan:
        """Return what stage number ``stage`` of ``num_stages`` does with the rows of ``layout``.

        Raises:
            RequestError: if the request's options do not fit this criterion and these stages.
        """
        ...


CRITERIA: dict[str, Criterion] = {
    "feather": Feather(),
    "fastv": FastV(score_domain="visual"),
    "fastv-full": FastV(score_domain="sequence"),
    "pyramiddrop": PyramidDrop(resets_positions=False),
    "pyramiddrop-reset": PyramidDrop(resets_positions=True),
    "ivc": Ivc(value_score=None),
    "ivc-value": Ivc(value_score=value_scores),
    "uniform": Uniform(),
    "random": Random(),
}

CRITERION_NAMES = (*CRITERIA, "none")


def criterion(name: str) -> Criterion:
    """Return the criterion called ``name``.

    Raises:
        RequestError: if there is none.
    """
    if name not in CRITERIA:
        raise RequestError(f"criterion {name!r} is unknown; choose {', '.join(CRITERION_NAMES)}")
    return CRITERIA[name]
