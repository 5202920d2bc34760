"""What is compared with the unpruned model: methods and keep ratios, at equal cost by default."""

from __future__ import annotations

import bisect
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from feather_edge.errors import RequestError
from feather_edge.evaluate.cost import prefill_flops
from feather_edge.pruning import CRITERION_NAMES, PRE_CRITERION_NAMES, Pruning
from feather_edge.pruning.forecast import forecast
from feather_edge.runtime.session import default_pruning
from feather_edge.runtime.spans import typical_layout

if TYPE_CHECKING:
    from feather_edge.bundle import Bundle

__all__ = ["METHODS", "UNPRUNED", "Budget", "Comparison", "equal_shares"]

Budget = Literal["equal", "own"]
PRE = "pre-"
METHODS = (
    *(name for name in CRITERION_NAMES if name != "none"),
    *(PRE + name for name in PRE_CRITERION_NAMES if name != "none"),
)
"""Criteria inside the decoder, then those before it, after ``pre-``."""

RECIPE = "recipe"
"""What the bundle's own recipe does, whatever it combines; one row, at its own keep ratio."""

UNPRUNED = ("none", 1.0)
NUM_TEXT_TOKENS = 32
"""Of a short question in a chat template, where costs are made equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is compared with the unpruned model.

    Attributes:
        methods: some of ``METHODS``, or ``recipe`` for what the bundle's own recipe does.
        keep_ratios: FEATHER's parameter, one after another.
        budget: ``equal``: at a ratio, every method inside the decoder keeps as many tokens at
            every stage as FEATHER does, and one before it as many as make the prefill cost the
            same. ``own``: the ratio is each method's own parameter.
        seed: of ``random``, mixed with the name of each sample; None takes the bundle's.
    """

    methods: tuple[str, ...] = METHODS
    keep_ratios: tuple[float, ...] = (0.75, 0.5, 0.25, 0.1)
    budget: Budget = "equal"
    seed: int | None = None

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in {*METHODS, RECIPE}:
                raise RequestError(
                    f"method {method!r} is unknown; choose all or some of {', '.join(METHODS)}, "
                    f"or recipe (unpruned is always there)"
                )
        if self.budget not in get_args(Budget):
            raise RequestError(f"budget {self.budget!r} is unknown; choose equal or own")
        for name, values in (("methods", self.methods), ("keep ratios", self.keep_ratios)):
            if not values or len(set(values)) != len(values):
                raise RequestError(f"{name} are {values}; give at least one, each of them once")

    def prunings(self, bundle: Bundle) -> dict[tuple[str, float], Pruning]:
        """Return the request of each method and ratio, the unpruned one first.

        A row prunes in one place, inside the decoder or before it; only ``recipe`` may combine.

        Raises:
            RequestError: if the bundle has no stages, and a method or the budget needs them.
        """
        self._require_stages(bundle)
        own = default_pruning(bundle)
        if self.seed is not None:
            own = dataclasses.replace(own, seed=self.seed)
        base = dataclasses.replace(own, criterion="none", pre_criterion="none")
        found = {UNPRUNED: base}
        if RECIPE in self.methods:
            found[(RECIPE, own.keep_ratio[0])] = own
        return found | {
            (method, ratio): self._pruning(bundle, base, method, ratio)
            for ratio in self.keep_ratios
            for method in self.methods
            if method != RECIPE
        }

    def _pruning(self, bundle: Bundle, base: Pruning, method: str, ratio: float) -> Pruning:
        shares = (ratio,) if self.budget == "own" else equal_shares(bundle, base, ratio)
        if not method.startswith(PRE):
            return dataclasses.replace(base, criterion=method, keep_ratio=shares)
        request = dataclasses.replace(base, pre_criterion=method.removeprefix(PRE))
        if self.budget == "equal":
            ratio = _equal_pre_ratio(bundle, request, shares)
        return dataclasses.replace(request, pre_keep_ratio=ratio)

    def _require_stages(self, bundle: Bundle) -> None:
        if bundle.schedule.stages or self.methods == (RECIPE,):
            return
        if self.budget == "equal" or not all(name.startswith(PRE) for name in self.methods):
            raise RequestError(
                f"{bundle.path} has no pruning stages, so only methods before the decoder differ, "
                f"and only with budget own; make a bundle that has with: feather-edge export "
                f"CHECKPOINT -o BUNDLE --stages LAYER[,LAYER...]"
            )


def equal_shares(bundle: Bundle, base: Pruning, keep_ratio: float) -> tuple[float, ...]:
    """Return the shares of the visual tokens that FEATHER's parameter leaves after each stage.

    The paper has two stages. With more, stage after stage keeps one more power of the ratio.
    """
    num_stages = len(bundle.schedule.stages)
    if num_stages > 2:
        return tuple(keep_ratio ** (stage + 1) for stage in range(num_stages))
    feather = dataclasses.replace(base, criterion="feather", keep_ratio=(keep_ratio,))
    total, *counts = forecast(feather, bundle.schedule, typical_layout(bundle.manifest))
    return tuple(count / total for count in counts)


def _equal_pre_ratio(bundle: Bundle, request: Pruning, shares: tuple[float, ...]) -> float:
    """Return the ratio before the decoder whose prefill costs most nearly what ``shares`` cost."""
    layout = typical_layout(bundle.manifest)
    total = layout.num_visual_tokens
    counts = [total, *(round(share * total) for share in shares)]
    target = prefill_flops(bundle, counts, NUM_TEXT_TOKENS)

    def cost(count: int) -> int:
        asked = dataclasses.replace(request, pre_keep_ratio=count / total)
        return prefill_flops(bundle, forecast(asked, bundle.schedule, layout), NUM_TEXT_TOKENS)

    above = bisect.bisect_left(range(1, total + 1), target, key=cost, hi=total - 1) + 1
    nearest = min((max(1, above - 1), above), key=lambda count: abs(cost(count) - target))
    return nearest / total
