"""What a request asks of a session, from the options of a command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feather_edge.cli._options import lay_over, only_given, require_stages

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
    **options: Any,
) -> dict[str, Any]:
    """Lay the options that were given over the bundle's own defaults."""
    from feather_edge.runtime.sampling import Sampling

    require_stages(session.bundle, stages)
    given = {"criterion": prune, "pre_criterion": pre_prune, "seed": seed, **options}
    return {
        "pruning": lay_over(session.pruning, **given),
        "regions": (*protect, *forbid),
        "sampling": Sampling(**only_given(temperature=temperature, top_p=top_p, seed=seed)),
    }
