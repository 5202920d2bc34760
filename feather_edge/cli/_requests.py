"""What a request asks of a session, from the options of a command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feather_edge.cli._options import only_given, require_stages
from feather_edge.errors import RequestError

if TYPE_CHECKING:
    from feather_edge.pruning import Region
    from feather_edge.runtime.session import Session


def request_options(
    session: Session,
    *,
    stages: tuple[int, ...] | None,
    prune: str | None,
    pre_prune: str | None,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    protect: tuple[Region, ...],
    forbid: tuple[Region, ...],
    deadline_ms: float | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Lay the options of a request that were given over the bundle's own.

    Raises:
        RequestError: if some of them cannot go together.
    """
    from feather_edge.pruning.overrides import override
    from feather_edge.runtime.sampling import Sampling

    require_stages(session.bundle, stages)
    asked = only_given(criterion=prune, pre_criterion=pre_prune, **options)
    if deadline_ms is not None and asked:
        name = {"criterion": "prune", "pre_criterion": "pre-prune"}.get(next(iter(asked)))
        raise RequestError(
            f"deadline-ms {deadline_ms:g} chooses what to keep, so "
            f"--{name or next(iter(asked)).replace('_', '-')} cannot go with it; leave one out"
        )
    pruning = override(session.pruning, **asked, **only_given(seed=seed))
    return {
        "pruning": pruning if deadline_ms is None else None,
        "deadline_ms": deadline_ms,
        "regions": (*protect, *forbid),
        "sampling": Sampling(**only_given(temperature=temperature, top_p=top_p, seed=seed)),
    }
