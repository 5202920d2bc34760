"""How many visual tokens each segment will see, told before anything runs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from feather_edge.pruning.criteria import criterion
from feather_edge.pruning.plan import StagePlan
from feather_edge.pruning.pre_decoder import pre_quotas
from feather_edge.pruning.request import unpruned_reason

if TYPE_CHECKING:
    from feather_edge.pruning.layout import Layout
    from feather_edge.pruning.request import Pruning
    from feather_edge.pruning.schedule import PruningSchedule


def forecast(pruning: Pruning, schedule: PruningSchedule, layout: Layout) -> list[int]:
    """Return the visual tokens that enter each segment, the first included.

    A stage before the decoder counts for the first segment.

    Exact for ``fill``; for ``union`` it is the mean, to which ``fill`` is set. Counts do not
    depend on scores, so the stages are played through with scores of zero.

    Raises:
        RequestError: if the request does not fit the schedule.
    """
    num_stages = len(schedule.stages)
    is_unpruned = unpruned_reason(pruning, layout, num_stages) is not None
    if pruning.pre_criterion != "none" and not is_unpruned:
        zeros = np.zeros(layout.num_rows, np.float32)
        plan = StagePlan(quotas=pre_quotas(pruning, layout), ranks=zeros)
        layout = layout.keep(plan.select(zeros, layout))
    counts = [layout.num_kept]
    if pruning.criterion == "none" or is_unpruned:
        return counts * (num_stages + 1)
    request = dataclasses.replace(pruning, selection="fill")
    for stage in range(num_stages):
        plan = criterion(request.criterion).plan(request, stage, num_stages, layout)
        layout = layout.keep(plan.select(np.zeros(layout.num_rows), layout))
        counts.append(layout.num_kept)
    return counts
